"""Evaluation of any checkpoints by hand: each is loaded and checked against the config, then evaluated and printed."""

import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from anml.checkpoints import ModelCard
from anml.config import cache_dir
from anml.config.evaluation import ClassSplit, DataRequest, EvalConfig, data_path_or_default, eval_request
from anml.config.facts import find_dataset
from anml.config.image_folder import check_unseen, fill_in_flavor
from anml.config.profile import Device
from anml.data import notices_of
from anml.data.class_images import ClassImages
from anml.errors import ConfigError
from anml.evaluate.job import accuracy_lines, finish, load_checkpoint, load_data
from anml.evaluate.prepared_run import check_head
from anml.evaluate.reuse import content_of, has_own_code
from anml.evaluate.sweep import LoadedModel, Trajectory, sweep_trajectories
from anml.jobs.job import JobContext
from anml.machine import prepare_device
from anml.models.meta_model import MetaModel, select_names
from anml.results import FinishedTrajectories, TrajectoryResult, write_results


def evaluate_by_hand(
    context: JobContext, configs: Sequence[EvalConfig], checkpoints: Sequence[Path], device: Device, output: Path | None
) -> bool:
    """Evaluate any checkpoints and print their accuracy; write the results only where they are asked for.

    configs: the same evaluation, once for each data set. Returns False when stopped before the end; the same evaluation
    then continues after the trajectories that were finished.
    """
    compute_on = prepare_device("auto", device, configs[0].deterministic)
    models = [loaded for config in configs for loaded in load_models(config, checkpoints, compute_on)]
    left_out_after = sorted({loaded.card.train_classes or 0 for loaded in models if loaded.config.is_validation})
    if len(left_out_after) > 1:
        note = (
            f"note: these models left out different classes (all after the first {', '.join(map(str, left_out_after))})"
        )
        print(f"{note}: do not compare their accuracy", file=sys.stderr)
    results: list[tuple[LoadedModel, TrajectoryResult]] = []
    unfinished: list[Path] = []
    for loaded in models:
        card, trajectories = loaded.card, sweep_trajectories(loaded.config)
        heading = f"{card.display_name}, step {card.step}: " if len(checkpoints) > 1 else ""
        say = functools.partial(print, heading, sep="", file=sys.stderr)
        finished = FinishedTrajectories(_unfinished(output, loaded, trajectories))
        if not finish(context, loaded, "eval", trajectories, finished, say=say):
            return False
        of_model = [finished.results[index] for index in range(len(trajectories))]
        for line in accuracy_lines([row for result in of_model for row in result.rows]):
            print(f"{heading}{line}")
        results += [(loaded, result) for result in of_model]
        unfinished.append(finished.path)
    if output is not None:
        _write(output, results)
    for path in unfinished:
        path.unlink(missing_ok=True)
    return True


def _unfinished(output: Path | None, loaded: LoadedModel, trajectories: Sequence[Trajectory]) -> Path:
    """Return where trajectories are kept until all are finished; what decides their numbers is in the name."""
    process = os.getpid() if has_own_code(loaded) else ""  # Such code may change: nothing is continued.
    key = hashlib.sha256(f"{content_of(loaded)} {trajectories} {process}".encode()).hexdigest()[:16]
    folder = output.parent if output else cache_dir() / "unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # The cache may be read-only.
        folder = Path(tempfile.mkdtemp())
    return folder / f".{output.stem if output else 'eval'}-{key}.partial.jsonl"


def _write(output: Path, results: Sequence[tuple[LoadedModel, TrajectoryResult]]) -> None:
    """Write the results of all models; those of several say in each class row which model it is of."""
    rows = [row for _, result in results for row in result.rows]
    class_rows = [row for _, result in results for row in result.class_rows]
    origins = [
        (card.display_name, card.step, card.seed, data.name)
        for (_, card, data, _), result in results
        for _ in result.class_rows
    ]
    write_results(output, rows, class_rows, origins if len(set(origins)) > 1 else ())


def load_models(config: EvalConfig, checkpoints: Sequence[Path], device: torch.device) -> list[LoadedModel]:
    """Load all models and check that they fit the config, before hours of work begin. Raises ConfigError."""
    loaded = [load_checkpoint(path, config, config.dataset, device) for path in checkpoints]
    cards = _tell_apart([card for _, card in loaded], checkpoints)
    models = [model for model, _ in loaded]
    return prepare_models(config, list(zip(map(str, checkpoints), models, cards, strict=True)), device)


def prepare_models(
    config: EvalConfig, named: Sequence[tuple[str, MetaModel, ModelCard]], device: torch.device
) -> list[LoadedModel]:
    """Check that models fit the config, and load the images of each. Raises ConfigError with every misfit.

    named: the models with their cards, each after the name that messages call it.
    """
    problems: list[str] = []
    models = []
    images: dict[DataRequest, ClassImages] = {}  # Checkpoints of one training share theirs: one copy on the device.
    for name, model, card in named:
        dataset = config.dataset or card.dataset
        misfits = misfits_of(model, card, config, dataset)
        if misfits:
            problems += [f"{name}: {text}" for text in misfits]
            continue
        request = _request(config, dataset, card)
        if request not in images:
            images[request] = load_data(config, request, device)
            for notice in notices_of(request, images[request]):
                print(f"note: {notice}", file=sys.stderr)
        models.append(LoadedModel(model, card, images[request], config))
    if problems:
        raise ConfigError(problems)
    return models


def _tell_apart(cards: Sequence[ModelCard], paths: Sequence[Path]) -> list[ModelCard]:
    """Return the cards; names that several of the same step share get their paths, as far as these differ."""
    keys = [(card.display_name, card.step, card.seed) for card in cards]
    folders = [path.resolve() for path in paths]
    places = [f" ({folder.relative_to(os.path.commonpath(folders))})" for folder in folders]
    return [
        replace(card, display_name=card.display_name + (place if keys.count(key) > 1 else ""))
        for card, key, place in zip(cards, keys, places, strict=True)
    ]


def misfits_of(model: MetaModel, card: ModelCard, config: EvalConfig, dataset: str) -> list[str]:
    """Return why a model cannot be evaluated as the config says."""
    (channels, size, _), outputs = card.image_shape, model.head.out_features
    problems = []
    if config.im_size not in (None, size):
        problems.append(f"im_size {config.im_size}: this model was trained on {size} pixels")
    if (has := config.channels or find_dataset(dataset).channels) != channels:
        text = f"this model takes images of {channels} channels, those of the data set have {has}; to convert them, add"
        problems.append(f"{text} channels: {channels}")
    if max(config.classes) > outputs:
        problems.append(f"{max(config.classes)} classes do not fit the {outputs} outputs of this model")
    for key, selectors in (("opt_params", config.opt_params), ("reinit_params", config.reinit_params)):
        try:
            select_names(model, selectors)
        except ConfigError as error:
            problems.append(f"{key}: {error}")
    if not problems:
        try:
            check_head(model, config)
        except ConfigError as error:
            problems.append(str(error))
    return problems + _validation_problems(card, config, dataset)


def _validation_problems(card: ModelCard, config: EvalConfig, dataset: str) -> list[str]:
    """Return why a model cannot be evaluated on background classes: only its card knows which it has not seen."""
    if not config.is_validation:
        return []
    if dataset != card.dataset:
        return [f"split: validation takes background classes of the training, of {card.dataset}, found {dataset}"]
    if card.train_classes is None:
        text = "split: validation needs background classes that training left out; this model was trained on all, or "
        text += "its card does not say (a .pth, an earlier version, allow_incomplete). Train one with train_classes: N"
        return [f"{text}, or evaluate this one on the evaluation classes (without split: validation)"]
    if config.allow_incomplete and not find_dataset(dataset).needs_counting:
        return ["split: validation finds classes by their positions in a complete copy; leave allow_incomplete out"]
    has = len(card.class_split["train"]) if card.class_split else find_dataset(dataset).train_classes
    left = has - card.train_classes
    if max(config.classes) > left:
        return [f"classes: this model has {left} background classes for validation, found {max(config.classes)}"]
    return []


def _request(config: EvalConfig, dataset: str, card: ModelCard) -> DataRequest:
    """Return what to load. A folder of the user's own is split as in the model's training, if that had one too."""
    size, data_path = card.image_shape[1], data_path_or_default(config.data_path)
    trained = ClassSplit.model_validate(card.class_split) if card.class_split else None
    if config.is_validation and card.train_classes:
        names, examples = (trained.train, card.imgs_per_class) if trained else ((), None)
        return DataRequest(
            dataset, "train", size, data_path, names, examples, first_class=card.train_classes, channels=config.channels
        )
    if find_dataset(dataset).needs_counting:
        config = config.model_copy(update={"dataset": dataset})
        if config.class_split is not None or trained is None:
            config, notices = fill_in_flavor(config, None)
            print("\n".join(notices), end="\n" if notices else "")
        if isinstance(config.class_split, ClassSplit):
            check_unseen(config.class_split, trained)
    return eval_request(config, dataset, size, data_path, trained, card.imgs_per_class, card.dataset)
