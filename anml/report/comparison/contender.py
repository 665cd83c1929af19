"""One of the experiments that are compared: its results at its last checkpoint, and what is missing."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.report.comparison.evaluation import Evaluation, evaluation_of
from anml.report.completeness import missing_results
from anml.report.grid import last_checkpoint
from anml.report.jobs import overall_state, read_jobs
from anml.report.milestones import Milestone, best_by_classes
from anml.report.tables import Sweep, SweepPoint, best_rates, main_points, read_scores, sweep_points
from anml.report.write import read_config
from anml.results import ResultRow


@dataclass(frozen=True)
class Contender:
    """An experiment in a comparison.

    label: its name there. step: the last checkpoint with results for the most classes; only that one is compared.
    best: a point per sweep at that checkpoint, pooled over trainings where there are several. rates: those tried in
    each sweep. milestones: at that checkpoint. missing: what its config asks for and its results do not hold.
    """

    experiment: Experiment
    label: str
    model: str
    config: TrainConfig | None
    step: int
    best: tuple[SweepPoint, ...]
    rates: dict[Sweep, tuple[float, ...]]
    milestones: tuple[Milestone, ...]
    state: str
    missing: tuple[str, ...]
    notices: tuple[str, ...]

    @property
    def address(self) -> str:
        """PROJECT/GROUP."""
        return f"{self.experiment.project}/{self.experiment.group}"

    @property
    def flavors(self) -> list[str]:
        """The flavors with results at the checkpoint, in the order of the config."""
        return list(dict.fromkeys(point.flavor for point in self.best))

    @property
    def title(self) -> str:
        """Its name, marked when results are missing."""
        return f"{self.label} (incomplete)" if self.missing else self.label

    def evaluation(self, flavor: str, protocol: str, dataset: str) -> Evaluation:
        """Return what a flavor does, as far as that is known."""
        if self.config is None or flavor not in self.config.eval:
            return Evaluation(protocol, dataset, unknown=f"{self.address}/{flavor}")
        return evaluation_of(self.config, flavor)

    def with_flavors(self, flavors: Collection[str]) -> "Contender":
        """Return it with only these flavors."""
        best = tuple(point for point in self.best if point.flavor in flavors)
        return replace(self, best=best, milestones=tuple(m for m in self.milestones if m.flavor in flavors))


def read_contender(experiment: Experiment) -> Contender | None:
    """Read an experiment. None when it has no results yet."""
    config, notices = read_config(experiment)
    rows, problems = read_scores(experiment)
    if not rows:
        return None
    points = main_points(sweep_points(rows, tuple(config.eval) if config else ()))
    summary = best_rates(points)
    step = last_checkpoint(summary)[0].checkpoint_step
    model = config.display_name if config else rows[0].model
    return Contender(
        experiment,
        label=model,
        model=model,
        config=config,
        step=step,
        best=tuple(point for point in summary if point.checkpoint_step == step),
        rates=_rates(points),
        milestones=_milestones(rows, step),
        state=overall_state(read_jobs(experiment)),
        missing=tuple(missing_results(config, rows) if config else ()),
        notices=(*notices, *problems),
    )


def _rates(points: Sequence[SweepPoint]) -> dict[Sweep, tuple[float, ...]]:
    rates: dict[Sweep, list[float]] = {}
    for point in points:
        rates.setdefault(point.sweep, [])
        if point.lr is not None:
            rates[point.sweep].append(point.lr)
    return {sweep: tuple(sorted(set(tried))) for sweep, tried in rates.items()}


def _milestones(rows: Sequence[ResultRow], step: int) -> tuple[Milestone, ...]:
    return tuple(best_by_classes(row for row in rows if row.checkpoint_step == step))


def with_labels(contenders: Sequence[Contender]) -> list[Contender]:
    """Return contenders named by their models, with the group (and the project) where a model comes twice."""
    labels = [contender.model for contender in contenders]
    for more in (lambda c: f"{c.model} ({c.experiment.group})", lambda c: f"{c.model} ({c.address})"):
        counts = Counter(labels)
        labels = [label if counts[label] == 1 else more(c) for label, c in zip(labels, contenders, strict=True)]
    return [replace(contender, label=label) for contender, label in zip(contenders, labels, strict=True)]
