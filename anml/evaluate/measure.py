"""What an evaluation measures besides accuracy (`measure`), written beside its results; docs/metrics.md defines it.

A representation is what `encode` gives for the test images of a run, whose classes the model has not seen.
"""

import io
import warnings
from collections.abc import Iterable, Iterator
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from anml.data.episodes import draw_run
from anml.evaluate.prepared_run import Shape, advance
from anml.evaluate.sweep import LoadedModel
from anml.results import CONFUSIONS, PICTURES, REPRESENTATION, ConfusionRow, TrajectoryResult, write_table
from anml.rng import derived_seed

# A unit is active where it exceeds this share of the largest activation of all: a gate makes units small, never zero.
ACTIVE = 0.01
# Images whose similarities are kept (500 have 124,750 pairs), and classes that the map shows.
COMPARED_IMAGES = 500
MAPPED_CLASSES = 10
# Pixels of the pictures that a report shows of classes.
PICTURE_SIZE = 56


class Activity(NamedTuple):
    """How a representation uses its units: shares of them, and effective_rank, a number of directions."""

    active: float
    dead: float
    effective_rank: float
    nonzero: float
    always_zero: float


def activity(features: torch.Tensor) -> Activity:
    """Return the numbers of features [n, d], float64, of n images.

    nonzero, always_zero: instance sparsity and dead units of Javed & White 2019, section 5; active, dead: the same by a
    threshold. effective_rank: the exponential of the entropy of the centred features' singular values (Roy & Vetterli
    2007).
    """
    active, dead = _shares(features.abs() > ACTIVE * features.abs().max())
    nonzero, always_zero = _shares(features != 0)
    centred = features - features.mean(dim=0)
    products = centred @ centred.T if len(features) < features.shape[1] else centred.T @ centred
    # By eigenvalues in a third of the time: only values below 1e-8 of the largest come out wrong.
    values = torch.linalg.eigvalsh(products).clamp_min(0).sqrt()
    entropy = torch.special.entr(values / values.sum()).sum()
    return Activity(active, dead, float(entropy.exp().nan_to_num(0)), nonzero, always_zero)


def _shares(is_on: torch.Tensor) -> tuple[float, float]:
    """Return, of bools [n, d], the share of units that are on, mean over images, and of units that never are."""
    return float(is_on.double().mean()), 1 - float(is_on.any(dim=0).double().mean())


def similarities(features: torch.Tensor) -> torch.Tensor:
    """Return how similar each pair of images is, float64 [n (n - 1) / 2], such that a product of two is their CKA.

    features: float64 [n, d], n > 3. Linear CKA (Kornblith et al. 2019) without the bias that few images cause: the
    products of features are U-centred (Song et al. 2012, Szekely & Rizzo 2014).
    """
    count, centred = len(features), features - features.mean(dim=0)
    products = (centred @ centred.T).fill_diagonal_(0)
    sums = products.sum(dim=0) / (count - 2)
    products += products.sum() / (count - 1) / (count - 2) - sums - sums[:, None]
    pairs = products[tuple(torch.triu_indices(count, count, 1))]
    return pairs / pairs.norm()


def write_measures(
    loaded: LoadedModel, flavor: str, path: Path, results: Iterable[TrajectoryResult], has_first: bool
) -> None:
    """Write what `measure` names beside the results file at `path`.

    has_first: this is the first job of the sweep, which measures the representation: it is the same in all.
    """
    wanted, card = loaded.config.measure or (), loaded.card
    model = {"flavor": flavor, "model": card.display_name, "dataset": loaded.data.name}
    model |= {"checkpoint_step": card.step, "train_seed": card.seed}
    if "representation" in wanted and has_first:
        rows = [model | row for row in _representation(loaded)]
        write_table(path.with_suffix(REPRESENTATION), rows)
    if "confusions" in wanted:
        confusions = [ConfusionRow(*row) for result in results for row in result.confusions]
        write_table(path.with_suffix(CONFUSIONS), [model | row for row in _with_labels(loaded, confusions)])
        write_table(path.with_suffix(PICTURES), list(_pictures(loaded)))


@torch.no_grad()
def _representation(loaded: LoadedModel) -> Iterator[dict[str, Any]]:
    """Yield the numbers of each run; of the first also what compares checkpoints, and what the map shows."""
    from sklearn.decomposition import PCA  # It takes a second to import.
    from sklearn.manifold import TSNE

    config, model = loaded.config, loaded.model.eval()
    shape = Shape(max(config.classes), max(config.train_examples), max(config.test_examples))
    for run in range(config.runs):
        drawn = draw_run(loaded.data, *shape, config.seed, run)
        images, _ = loaded.data.batch(
            drawn.classes.repeat_interleave(shape.test_examples), drawn.test_examples.flatten()
        )
        features = advance(model, images, "features").flatten(1).double().cpu()
        if not features.isfinite().all():
            warnings.warn("features of this model are not finite: no representation is measured", stacklevel=1)
            return
        row = shape._asdict() | {"run": run, "units": features.shape[1], **activity(features)._asdict()}
        pairs, maps = torch.zeros(0), {"map": np.zeros(0), "tsne": np.zeros(0)}
        if run == 0:
            pairs = similarities(features[:COMPARED_IMAGES]).float()
            mapped = features[: MAPPED_CLASSES * shape.test_examples].numpy()
            seed, perplexity = derived_seed(config.seed, "t-SNE") % 2**32, min(30.0, (len(mapped) - 1) / 3)
            tsne = TSNE(2, perplexity=perplexity, init="random", random_state=seed)
            maps = {"map": PCA(2).fit_transform(mapped), "tsne": tsne.fit_transform(mapped)}
        flat = {name: places.flatten().astype(np.float32) for name, places in maps.items()}
        yield row | {"similarities": pairs.numpy()} | flat


def _with_labels(loaded: LoadedModel, rows: Iterable[ConfusionRow]) -> Iterator[dict[str, Any]]:
    """Yield rows with the labels of both classes in the data set: each run has its order of them."""
    orders: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        key = (row.classes, row.run)
        if key not in orders:
            sizes = (row.classes, row.train_examples, row.test_examples)
            orders[key] = draw_run(loaded.data, *sizes, loaded.config.seed, row.run).classes.tolist()
        predicted = orders[key][row.predicted] if row.predicted >= 0 else -1
        labels = {"label": orders[key][row.position], "predicted_label": predicted}
        yield row._asdict() | {"lr": nan if row.lr is None else row.lr} | labels


def _pictures(loaded: LoadedModel) -> Iterator[dict[str, Any]]:
    """Yield the first image of each class as a small PNG."""
    from PIL import Image  # Evaluations that measure nothing need no image library.

    for label, pixels in enumerate(loaded.data.images[:, 0].cpu()):
        picture, file = Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()), io.BytesIO()
        picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        picture.save(file, "png")
        yield {"label": label, "picture": file.getvalue()}
