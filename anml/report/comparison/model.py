"""One of the experiments that are compared: its results at its last checkpoint, and what is missing."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from anml.config.training import TrainConfig, model_order
from anml.experiment import Experiment
from anml.jobs.status import overall_state, read_jobs
from anml.report.comparison.differences import Evaluation, choices, evaluation_of
from anml.report.curves import ClassCountAccuracy, best_by_classes
from anml.report.statistics import grouped
from anml.report.tables import (
    RateResult,
    best_rates,
    finals,
    main_points,
    missing_results,
    rate_results,
    read_scores,
    sweep_of,
)
from anml.report.text import last_checkpoint
from anml.report.write import read_config
from anml.results import ResultRow


class Cell(NamedTuple):
    """The best rate of one experiment's sweep, among the rates that were tried.

    runs: test accuracy of every (training seed, run) at the best rate. seed: of the evaluation, None where unknown:
    runs of one number and seed have the same classes and examples.
    """

    point: RateResult
    rates: tuple[float, ...]
    runs: dict[tuple[int, int], float]
    seed: int | None

    @property
    def edge(self) -> str:
        """Which end of the rates tried the best one is, empty when it lies between others."""
        if len(self.rates) < 2 or self.point.lr not in (self.rates[0], self.rates[-1]):
            return ""
        return "lowest" if self.point.lr == self.rates[0] else "highest"


@dataclass(frozen=True)
class ComparedModel:
    """An experiment in a comparison.

    label: its name there. step: the last checkpoint with results for the most classes; only that one is compared.
    cells: one per sweep at that checkpoint, pooled over trainings where there are several. milestones: at that
    checkpoint. missing: what its config asks for and its results do not hold. choices: what of its config tells its
    training from those of the others.
    """

    experiment: Experiment
    label: str
    model: str
    config: TrainConfig | None
    step: int
    cells: tuple[Cell, ...]
    milestones: tuple[ClassCountAccuracy, ...]
    state: str
    missing: tuple[str, ...]
    notices: tuple[str, ...]
    choices: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """PROJECT/GROUP."""
        return f"{self.experiment.project}/{self.experiment.group}"

    @property
    def flavors(self) -> list[str]:
        """The flavors with results at the checkpoint, in the order of the config."""
        return list(dict.fromkeys(cell.point.flavor for cell in self.cells))

    @property
    def title(self) -> str:
        """Its name, marked when results are missing."""
        return f"{self.label} (incomplete)" if self.missing else self.label

    @property
    def differs_in(self) -> list[str]:
        """The choices in words, as `outer_lr 0.003`."""
        return [f"{key} {value}" for key, value in self.choices.items()]

    @property
    def own_config(self) -> TrainConfig | None:
        """The config of its model alone, where the experiment's has several inner learning rates."""
        alone = [self.config.for_training(one) for one in self.config.trainings] if self.config else []
        return next((config for config in alone if config.display_name == self.model), self.config)

    def evaluation(self, flavor: str, protocol: str, dataset: str) -> Evaluation:
        """Return what a flavor does, as far as that is known."""
        if self.config is None or flavor not in self.config.eval:
            return Evaluation(protocol, dataset, unknown=f"{self.address}/{flavor}")
        return evaluation_of(self.config, flavor)

    def with_flavors(self, flavors: Collection[str]) -> "ComparedModel":
        """Return it with only these flavors."""
        cells = tuple(cell for cell in self.cells if cell.point.flavor in flavors)
        return replace(self, cells=cells, milestones=tuple(m for m in self.milestones if m.flavor in flavors))


def read_compared_models(experiment: Experiment) -> list[ComparedModel]:
    """Return a contender for each model of an experiment (several with `inner_lrs`), none where it has no results."""
    config, notices = read_config(experiment)
    rows, problems = read_scores(experiment)
    notices = (*notices, *problems)
    models = grouped(rows, lambda row: row.model)
    # A model without any results is no contender: the others tell that it is missing.
    absent = {config.for_training(one).display_name for one in config.trainings} - set(models) if config else set()
    return [
        _compared_model(
            experiment, config, models[model],
            missing_results(config, rows, {model} | absent) if config else [], notices,
        )
        for model in sorted(models, key=model_order)
    ]  # fmt: skip


def _compared_model(
    experiment: Experiment,
    config: TrainConfig | None,
    rows: Sequence[ResultRow],
    missing: Sequence[str],
    notices: Sequence[str],
) -> ComparedModel:
    """Return the contender that one model of an experiment is. rows: of that model."""
    points = main_points(rate_results(rows, tuple(config.eval) if config else ()))
    summary = best_rates(points)
    step = last_checkpoint(summary)[0].checkpoint_step
    compared = [row for row in rows if row.checkpoint_step == step]
    return ComparedModel(
        experiment,
        label=rows[0].model,
        model=rows[0].model,
        config=config,
        step=step,
        cells=tuple(_cells(config, points, [point for point in summary if point.checkpoint_step == step], compared)),
        milestones=tuple(best_by_classes(compared)),
        state=overall_state(read_jobs(experiment)),
        missing=tuple(missing),
        notices=tuple(notices),
    )


def _cells(
    config: TrainConfig | None, points: Sequence[RateResult], best: Sequence[RateResult], rows: Sequence[ResultRow]
) -> Iterator[Cell]:
    sweeps = grouped(points, lambda point: point.sweep)
    ends = grouped(finals(rows), lambda row: (sweep_of(row), row.lr))
    for point in best:
        rates = sorted(other.lr for other in sweeps[point.sweep] if other.lr is not None)
        runs = {(row.train_seed, row.run): row.test_acc for row in ends[point.sweep, point.lr]}
        seed = config.eval[point.flavor].seed if config and point.flavor in config.eval else None
        yield Cell(point, tuple(rates), runs, seed)


def with_labels(entries: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Return contenders named by their models, with the group (and the project) where a model comes twice."""
    labels = [entry.model for entry in entries]
    for more in (lambda c: f"{c.model} ({c.experiment.group})", lambda c: f"{c.model} ({c.address})"):
        counts = Counter(labels)
        labels = [label if counts[label] == 1 else more(c) for label, c in zip(labels, entries, strict=True)]
    return [replace(entry, label=label) for entry, label in zip(entries, labels, strict=True)]


def with_choices(entries: Sequence[ComparedModel]) -> list[ComparedModel]:
    """Return contenders with what tells the training of each from those of the others here."""
    found = choices([entry.own_config for entry in entries])
    return [replace(entry, choices=own) for entry, own in zip(entries, found, strict=True)]
