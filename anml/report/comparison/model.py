"""The models that are compared: their results at the last checkpoint, and what is missing."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from anml.config.training import TrainConfig
from anml.config.vary import natural_order
from anml.experiment import Experiment
from anml.jobs.status import overall_state, read_jobs
from anml.report import tables
from anml.report.comparison.differences import Evaluation, choices, evaluation_of
from anml.report.measures import Runs
from anml.report.statistics import grouped
from anml.report.tables import RateResult
from anml.report.text import last_checkpoint
from anml.report.write import Report, read_report


class Cell(NamedTuple):
    """The best rate of one model's sweep, among the rates that were tried.

    runs: test accuracy of every (training seed, run) at the best rate. seed: of the evaluation, None where unknown:
    runs of one number and seed have the same classes and examples. measures: what there is besides accuracy, by run.
    similarities: of the images of run 0 as each training sees them (evaluate/measure.py), where they were measured.
    """

    best: RateResult
    rates: tuple[float, ...]
    runs: dict[tuple[int, int], float]
    seed: int | None
    measures: Mapping[str, Runs] = MappingProxyType({})
    similarities: Sequence[np.ndarray] = ()

    @property
    def edge(self) -> str:
        """Which end of the rates tried the best one is, empty when it lies between others."""
        if len(self.rates) < 2 or self.best.lr not in (self.rates[0], self.rates[-1]):
            return ""
        return "lowest" if self.best.lr == self.rates[0] else "highest"


@dataclass(frozen=True)
class ComparedModel:
    """A model of an experiment in a comparison.

    label: its name there. config: of its whole experiment. step: the last checkpoint with results for the most classes;
    only that one is compared. cells: one per sweep at that checkpoint, pooled over trainings where there are several.
    by_classes: accuracy after fewer classes at that checkpoint. missing: what its config asks for and its results do
    not hold. choices: what of its config tells its training from those of the others.
    """

    experiment: Experiment
    label: str
    model: str
    config: TrainConfig | None
    step: int
    cells: list[Cell]
    by_classes: list[RateResult]
    state: str
    missing: list[str]
    notices: list[str]
    choices: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.experiment.project}/{self.experiment.group}"

    @property
    def title(self) -> str:
        """Its label, marked when results are missing."""
        return f"{self.label} (incomplete)" if self.missing else self.label

    @property
    def differs_in(self) -> list[str]:
        """The choices in words, as `outer_lr 0.003`."""
        return [f"{key} {value}" for key, value in self.choices.items()]

    @property
    def own_config(self) -> TrainConfig | None:
        """The config of this model alone, where the experiment's has several inner learning rates."""
        configs = [self.config.for_training(training) for training in self.config.trainings] if self.config else []
        is_added = self.config and self.model in self.config.added_checkpoints
        return next((c for c in configs if c.display_name == self.model), None if is_added else self.config)

    def evaluation(self, result: RateResult) -> Evaluation:
        """Return what the flavor of a result does, as far as that is known."""
        if self.config is None or result.flavor not in self.config.eval:
            return Evaluation(result.protocol, result.dataset, unknown=f"{self.address}/{result.flavor}")
        return evaluation_of(self.config, result.flavor)

    def with_flavors(self, flavors: Collection[str]) -> "ComparedModel":
        cells = [cell for cell in self.cells if cell.best.flavor in flavors]
        by_classes = [result for result in self.by_classes if result.flavor in flavors]
        return replace(self, cells=cells, by_classes=by_classes)


def read_compared_models(experiment: Experiment) -> list[ComparedModel]:
    """Return the models of an experiment (several with `inner_lrs`), none where it has no results."""
    report = read_report(experiment)
    config, state = report.config, overall_state(read_jobs(experiment))
    by_model = grouped(report.rows, lambda row: row.model)
    trained = {config.for_training(training).display_name for training in config.trainings} if config else set()
    trained |= set(config.added_checkpoints if config else ())
    models = []
    for model in sorted(by_model, key=natural_order):
        of_model = replace(report, rows=by_model[model])
        step = last_checkpoint(of_model.summary)[0].checkpoint_step
        chosen = of_model.choose_checkpoints
        by_classes = tables.best_by_classes(r for r in of_model.rows if r.checkpoint_step == step or r.flavor in chosen)
        # A model without any results has no line of its own: the lines of the others say that it is missing.
        named = {model} | (trained - by_model.keys())
        missing = tables.missing_results(config, report.rows, named) if config else []
        cells = list(_cells(of_model, step, report))
        models.append(
            ComparedModel(experiment, model, model, config, step, cells, by_classes, state, missing, report.notices)
        )
    return models


def _cells(report: Report, step: int, whole: Report) -> Iterator[Cell]:
    """Yield the cells of one model. whole: the report of all models, which reads what was measured once."""
    sweeps = grouped(tables.main_results(report.results), lambda result: result.sweep)
    ends = grouped(tables.finals(report.rows), lambda row: (tables.sweep_of(row), row.lr))
    for best in tables.main_results(report.summary):
        if best.checkpoint_step == step or best.flavor in report.choose_checkpoints:
            rates = sorted(result.lr for result in sweeps[best.sweep] if result.lr is not None)
            runs = {(row.train_seed, row.run): row.test_acc for row in ends[best.sweep, best.lr]}
            seed = report.config.eval[best.flavor].seed if report.config and best.flavor in report.flavors else None
            measured = [item for item in whole.representations if item.result.sweep == best.sweep]
            similarities = [row["similarities"] for item in measured for row in item.first_runs]
            yield Cell(best, tuple(rates), runs, seed, whole.measures(best), similarities)


def with_labels(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Return models with labels: their names, with the group (and the project) where a name comes twice."""
    labels = [model.model for model in models]
    for more in (lambda m: f"{m.model} ({m.experiment.group})", lambda m: f"{m.model} ({m.address})"):
        counts = Counter(labels)
        labels = [label if counts[label] == 1 else more(m) for label, m in zip(labels, models, strict=True)]
    return [replace(model, label=label) for model, label in zip(models, labels, strict=True)]


def with_choices(models: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Return models with what tells the training of each from those of the others here."""
    differing = choices([model.own_config for model in models])
    return [replace(model, choices=choices) for model, choices in zip(models, differing, strict=True)]
