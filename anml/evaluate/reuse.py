"""Nothing is measured twice: trajectories of the same content are taken from where another evaluation has them.

The content is the model's tensors, the images, the settings that change numbers, and the code. Beside the experiments,
`.results/CONTENT/` has a file for each results file that was made of it: where it lies, and its checksum.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anml.atomic import read_json, write_json
from anml.config.evaluation import EvalConfig
from anml.config.model_args import model_references
from anml.errors import DataError
from anml.evaluate.sweep import LoadedModel, Say, Trajectory
from anml.experiment import Experiment, experiments_folder
from anml.plugins import CODE, code_that_measures, is_reference
from anml.results import REUSED, ClassRow, ResultRow, TrajectoryResult, read_results

FOLDER = ".results"
# Settings of which trajectories there are, of what else is measured, of where things lie, and of which images: their
# content counts.
_OTHER_SETTINGS = {
    "classes", "train_examples", "test_examples", "lr", "runs", "until", "race", "choose", "grown_from", "measure",
    "model", "pth_args", "dataset", "data_path", "im_size", "imgs_per_class", "split", "class_split",
    "allow_incomplete", "channels",
}  # fmt: skip

Key = tuple[int, int, int, float | None, int]
Measured = Mapping[Key, Sequence[ResultRow]]


@dataclass(frozen=True)
class Reuse:
    """What other evaluations have measured of a content, for the results file of one evaluation.

    offers: the folder of what there is. takes: whether to take it; results are offered to others in any case.
    say: receives what a log is to tell.
    """

    experiments: Path
    offers: Path
    results_file: Path
    loaded: LoadedModel
    flavor: str
    takes: bool
    say: Say

    def take(self, trajectories: Mapping[int, Trajectory]) -> Iterator[tuple[str, dict[int, TrajectoryResult]]]:
        """Yield the results of those trajectories that somebody has measured, by their index, from file after file."""
        left = dict(trajectories) if self.takes else {}
        for offer in self._others() if left else ():
            # It may be gone, edited, evaluated again just now, or somebody's who does not let others read.
            with suppress(OSError, ValueError, LookupError, TypeError, DataError):
                taken = self._taken_from(self.experiments / offer["results"], offer["sha256"], left)
                left = {index: each for index, each in left.items() if index not in taken}
                if taken:
                    yield offer["results"], taken
            if not left:
                break

    def _taken_from(
        self, source: Path, checksum: str, trajectories: Mapping[int, Trajectory]
    ) -> dict[int, TrajectoryResult]:
        if source == self.results_file:
            return {}
        measured, config = _by_trajectory(read_results([source])), self.loaded.config
        wanted = {index: _rows_of(each, measured, config) for index, each in trajectories.items()}
        wanted = {index: rows for index, rows in wanted.items() if rows}
        class_rows = _read_class_rows(source, {rows[0].run for rows in wanted.values()}) if wanted else {}
        if wanted and _checksum(source) != checksum:  # After reading: somebody may evaluate it again meanwhile.
            return {}
        taken = {}
        for index, rows in wanted.items():
            kept = {(row.step, row.classes_trained) for row in rows}
            of_classes = [row for row in class_rows[_key(rows[0])] if (row.step, row.classes_trained) in kept]
            taken[index] = TrajectoryResult([self._as_of_this(row) for row in rows], of_classes)
        return taken

    def offer(self) -> None:
        """Let others find the results file, which is complete."""
        results = self.results_file.relative_to(self.experiments).as_posix()
        try:
            write_json(self.offers / self._name(results), {"results": results, "sha256": _checksum(self.results_file)})
        except OSError as error:
            self.say(f"other experiments cannot take these results: {error}")

    def _others(self) -> Iterator[dict[str, Any]]:
        """Yield offers; first those of the same name, whose sweeps are probably cut alike."""
        files = self.offers.glob("*.json") if os.access(self.offers, os.R_OK | os.X_OK) else ()
        for file in sorted(files, key=lambda file: (not file.name.startswith(f"{self.results_file.stem}."), file.name)):
            with suppress(OSError):  # Somebody's who does not let others read.
                yield read_json(file)

    def _name(self, results: str) -> str:
        return f"{self.results_file.stem[:100]}.{hashlib.sha256(results.encode()).hexdigest()[:16]}.json"

    def _as_of_this(self, row: ResultRow) -> ResultRow:
        config, card = self.loaded.config, self.loaded.card
        return replace(
            row, flavor=self.flavor, model=card.display_name, dataset=self.loaded.data.name, train_seed=card.seed,
            checkpoint_step=card.step, first_runs=config.runs if config.until else None,
        )  # fmt: skip

    def record(self, results: str, count: int) -> None:
        """Tell of trajectories that were taken: the log now, the report later."""
        self.say(f"{count} trajectories are taken from {results}: the same model, images, settings and code")
        file = self.results_file.with_suffix(REUSED)
        counts = Counter(read_json(file).get("trajectories", {})) + Counter({results: count})
        write_json(file, {"trajectories": counts})


def find_reuse(
    experiment: Experiment, results_file: Path, loaded: LoadedModel, flavor: str, takes: bool, say: Say
) -> Reuse | None:
    """Return what there is for an evaluation. None for users' own models and protocols, whose code may be anywhere."""
    experiments = experiments_folder(experiment)
    if experiments is None or has_own_code(loaded):
        return None
    root = experiments / experiment.project / experiment.group
    file = root / results_file.relative_to(experiment.root)
    return Reuse(experiments, experiments / FOLDER / content_of(loaded), file, loaded, flavor, takes, say)


def has_own_code(loaded: LoadedModel) -> bool:
    """Whether the model or the protocol is a user's own: its code is no part of the content."""
    card = loaded.card
    return bool(model_references(card.model, card.model_args)) or is_reference(loaded.config.eval_method)


def content_of(loaded: LoadedModel) -> str:
    """Return the checksum of all that decides what a trajectory measures."""
    model, card, data, config = loaded
    checksum = hashlib.sha256()
    settings = config.model_dump(mode="json", exclude=_OTHER_SETTINGS)
    facts = [settings, card.model, card.model_args, card.image_shape, data.name, data.mean_std, data.are_characters]
    libraries = [torch.__version__, np.__version__, version("scikit-learn")]
    facts += [data.images.device.type, list(data.images.shape), libraries]
    # A user's data set may normalise by numbers of NumPy's.
    checksum.update(json.dumps(facts, sort_keys=True, default=float).encode())
    for name, tensor in sorted(model.state_dict().items()):
        checksum.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        checksum.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    examples = torch.arange(data.examples_per_class)
    for label in range(data.num_classes):  # An array in a file may be larger than the memory.
        labels = torch.full_like(examples, label)
        images = data.stored.read(data.images, labels, examples) if data.stored else data.images[label]
        checksum.update(images.cpu().contiguous().numpy().data)
    for file in code_that_measures(CODE):
        checksum.update(f"{file.relative_to(CODE)} ".encode() + file.read_bytes())
    return checksum.hexdigest()


def _checksum(results_file: Path) -> str:
    parts = (results_file, results_file.with_suffix(".parquet"))
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def _key(row: ResultRow | ClassRow) -> Key:
    return row.classes, row.train_examples, row.test_examples, row.lr, row.run


def _by_trajectory(rows: Sequence[ResultRow]) -> Measured:
    measured: dict[Key, list[ResultRow]] = {}
    for row in rows:
        measured.setdefault(_key(row), []).append(row)
    return measured


def _read_class_rows(results_file: Path, runs: Collection[int]) -> dict[Key, list[ClassRow]]:
    import pyarrow.parquet as pq

    file, names = results_file.with_suffix(".parquet"), list(ClassRow._fields)
    columns = pq.read_table(file, columns=names, filters=[("run", "in", runs)]).to_pydict()
    by_trajectory: dict[Key, list[ClassRow]] = {}
    for row in map(ClassRow._make, zip(*columns.values(), strict=True)):
        by_trajectory.setdefault(_key(row), []).append(row)
    return by_trajectory


def _rows_of(trajectory: Trajectory, measured: Measured, config: EvalConfig) -> list[ResultRow]:
    """Return all scorings that a trajectory wants; none where one is missing, as of a rate that a race has stopped."""
    classes, train, test = trajectory.shape
    wanted = set(trajectory.counts or config.scored(classes))
    rows = measured.get((classes, train, test, trajectory.lr, trajectory.run), ())
    rows = [row for row in rows if row.classes_trained in wanted]
    return rows if {row.classes_trained for row in rows} == wanted else []
