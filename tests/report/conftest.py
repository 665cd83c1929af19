"""Experiment folders with realistic numbers, made without training anything."""

import csv
import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from anml.atomic import write_json, write_text
from anml.config.evaluation import EvalConfig
from anml.config.load import dump_config, load_train_config
from anml.config.training import TrainConfig
from anml.experiment import Experiment
from anml.jobs.job_status import JobStatus, write_status
from anml.jobs.plan import Job, make_plan
from anml.report.comparison import Comparison, write_comparison
from anml.report.comparison.model import ComparedModel, read_compared_models, with_labels
from anml.report.index import write_indexes
from anml.report.write import Report, write_report
from anml.results import COLUMNS, ResultRow

LAUNCHED = "2025-03-01T12:00:00+00:00"
OMNIGLOT = """
dataset: omniglot
model: anml
model_name: ANML
inner_params: [rln, fc]
epochs: 25000
eval_steps: [10000, 25000]
eval_untrained: true
eval:
  - no-sgd: &all {classes: 600, train_examples: 15, test_examples: 5, runs: 10, eval_method: zero_shot}
  - olft: &sweep
      <<: *all
      eval_method: sequential
      opt_params: head
      eval_freq: 50
      lr: [0.01, 0.0055, 0.001, 0.0007, 0.0004, 0.0001, 0.00007, 0.00004]
  - unfrozen: {<<: *sweep, opt_params: all}
  - olft-oracle: {<<: *sweep, eval_method: iid, eval_freq: 5}
  - unfrozen-oracle: {<<: *sweep, eval_method: iid, eval_freq: 5, opt_params: all}
"""
SMALL = """
dataset: glyphs
model: anml
inner_params: [rln, fc]
epochs: 600
eval_steps: [200, 600]
eval_untrained: true
eval:
  - no-sgd: &all {classes: 20, train_examples: 15, test_examples: 5, runs: 4, eval_method: zero_shot}
  - olft: {<<: *all, eval_method: sequential, opt_params: head, lr: [0.001, 0.003, 0.01], eval_freq: 5}
"""
VALIDATED = SMALL.replace("model: anml", "model: anml\ntrain_classes: 900") + (
    "  - held-out: {<<: *all, split: validation, classes: 30, eval_method: sequential, lr: [0.001, 0.01], eval_freq: 5}"
)
CONFIGS = {"omniglot": OMNIGLOT, "small": SMALL, "validated": VALIDATED}
COMPARED = """
dataset: glyphs
model: {model}
model_name: {name}
im_size: {pixels}
epochs: 600
eval_steps: [200, 600]
eval:
  - no-sgd: &all {{classes: 20, train_examples: 15, test_examples: 5, runs: {runs}, eval_method: zero_shot}}
  - {olft}: &sweep
      <<: *all
      eval_method: sequential
      opt_params: head
      eval_freq: 5
      lr: [0.0001, 0.001, 0.01]
  - {oracle}: {{<<: *sweep, eval_method: iid, batch_size: {batch}}}
"""
# Accuracy at the best rate, that rate, and how much is forgotten by the end of 600 classes.
CHARACTER = {
    "no-sgd": (0.45, 0.0, 0.0),
    "olft": (0.68, 0.0009, 0.27),
    "unfrozen": (0.60, 0.00007, 0.3),
    "olft-oracle": (0.79, 0.004, 0.1),
    "unfrozen-oracle": (0.86, 0.0005, 0.1),
}


@dataclass
class Builder:
    """One experiment folder, filled step by step."""

    experiment: Experiment
    config: TrainConfig

    def results(self, flavors: Iterable[str] | None = None, seeds: Iterable[int] | None = None) -> "Builder":
        """Write the results of flavors (default: all)."""
        for one in self.config.trainings:
            alone = self.config.for_training(one)
            if seeds is not None and alone.seed not in seeds:
                continue
            for flavor in self.config.eval if flavors is None else flavors:
                for step in ([0] if self.config.eval_untrained else []) + list(self.config.checkpoint_steps):
                    rows = invented_rows(alone, flavor, step, alone.seed)
                    _write_rows(self.experiment.result(flavor, step, one.tag), rows)
        return self

    def write(self, name: str, rows: Iterable[ResultRow]) -> "Builder":
        """Write one results file."""
        _write_rows(self.experiment.results / f"{name}.csv", rows)
        return self

    def metrics(self, lines: int = 250, with_validation: bool = False) -> "Builder":
        """Write training logs with so many lines."""
        for one in self.config.trainings:
            noise = random.Random(one.tag)
            text = ""
            for line in range(1, lines + 1):
                step = max(1, self.config.total_steps * line // lines)
                learned = 1 - math.exp(-4 * step / self.config.total_steps)
                right = min(1.0, max(0.0, 0.03 + 0.9 * learned + noise.gauss(0, 0.04)))
                loss = (6.5 * (1 - learned) + 0.08) * math.exp(noise.gauss(0, 0.3))
                entry = {"step": step, "loss": loss, "accuracy": right}
                if with_validation:
                    entry["val_accuracy"] = right * 0.9
                text += json.dumps({**entry, "steps_per_second": 6.5}) + "\n"
            write_text(self.experiment.metrics(one.tag), text)
        return self

    def jobs(self, **states: str) -> "Builder":
        """Write the plan, and statuses: all done but those named (with `_` for `-`)."""
        plan = make_plan(self.config)
        write_json(self.experiment.plan_file, {"cluster": {}, "jobs": plan.to_json(), "submitted": {}})
        for number, job in enumerate(plan.jobs):
            if job.kind != "report":
                self.status(
                    job, JobStatus(state="done", attempt=1, started=0.0, ended=61.7 * (number + 1), updated=1.0)
                )
        for name, state in states.items():
            self.status(plan.job(name.replace("_", "-")), JobStatus(state=state, attempt=1))  # type: ignore[arg-type]
        return self

    def status(self, job: Job, status: JobStatus, task: int | None = None) -> None:
        """Write the status of one job."""
        write_status(self.experiment.job(job.name, task).status, status)


def invented_rows(config: TrainConfig, flavor: str, step: int, seed: int) -> list[ResultRow]:
    """Return the rows of a flavor with numbers that look like those of real runs."""
    evaluation = config.eval[flavor]
    noise = random.Random(f"{flavor}/{step}/{seed}")
    rows = []
    for classes in evaluation.classes:
        for run in range(evaluation.runs):
            for lr in evaluation.lr if evaluation.protocol.learns else (None,):
                rows += _trajectory(config, evaluation, flavor, step, seed, classes, run, lr, noise)
    return rows


def _trajectory(
    config: TrainConfig, evaluation: EvalConfig, flavor: str, step: int, seed: int, classes: int, run: int,
    lr: float | None, noise: random.Random,
) -> list[ResultRow]:  # fmt: skip
    best, best_lr, forgotten = CHARACTER.get(flavor, (0.6, 0.001, 0.2))
    trained = 0.25 + 0.75 * step / config.total_steps + 0.02 * (seed - 1)
    rate = 1.0 if lr is None else math.exp(-((math.log10(lr / best_lr) / 0.8) ** 2))
    offset = noise.gauss(0, 0.012)
    points = evaluation.score_points(classes) if evaluation.protocol.in_sequence else (classes,)
    rows, method = [], evaluation.eval_method
    learns = method != "zero_shot"
    for learned in points:
        kept = best + forgotten * (1 - learned / classes)
        test = min(1.0, max(0.0, kept * trained * rate + offset + noise.gauss(0, 0.3 / (5 * learned) ** 0.5)))
        row = ResultRow(
            flavor=flavor, protocol=method, model=config.display_name,
            dataset=config.eval_request(evaluation).name, checkpoint_step=step, classes=classes,
            train_examples=15, test_examples=5, lr=lr, train_seed=seed, run=run,
            epoch=int(learns), step=learned * 15 * learns, classes_trained=learned,
            train_acc=min(1.0, test * 1.15 + 0.03), test_acc=test, train_top5=min(1.0, test * 1.3),
            test_top5=min(1.0, test * 1.2),
        )  # fmt: skip
        rows.append(row)
    return rows


def _write_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(["" if value is None else value for value in astuple(row)] for row in rows)


def make_row(**changes: Any) -> ResultRow:
    """Return a row of results with the given values."""
    usual = ResultRow(
        flavor="olft", protocol="sequential", model="ANML", dataset="glyphs", checkpoint_step=600, classes=20,
        train_examples=15, test_examples=5, lr=0.001, train_seed=1, run=0, epoch=1, step=300, classes_trained=20,
        train_acc=0.9, test_acc=0.5, train_top5=1.0, test_top5=0.9,
    )  # fmt: skip
    return replace(usual, **changes)


@pytest.fixture
def row() -> Callable[..., ResultRow]:
    """Return a function that makes a row of results with the given values."""
    return make_row


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Builder]:
    """Return a function that starts an experiment folder."""

    def start(config: str = "small", project: str = "demo", group: str = "quiet-otter-1", **changes: Any) -> Builder:
        return start_experiment(tmp_path / "experiments" / project / group, CONFIGS[config], **changes)

    return start


def start_experiment(root: Path, config: str, **changes: Any) -> Builder:
    """Make an experiment folder with config and environment."""
    experiment = Experiment(root)
    source = root.parent / "source.yml"
    write_text(source, config)
    resolved = load_train_config(source).config.model_copy(update=changes)
    source.unlink()
    write_text(experiment.config_file, dump_config(resolved))
    environment = {
        "launched": LAUNCHED,
        "experiments_dir": str(root.parent.parent),
        "command_line": ["launch_train.py", "-c", "configs/train-omni-anml.yml", "--project", "it's"],
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "git_diff": "",
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "packages": {"torch": "2.13.0", "pandas": "3.1.1"},
    }
    write_json(experiment.environment_file, environment)
    return Builder(experiment, resolved)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take most of the time of a report or comparison."""
    monkeypatch.setattr("anml.report.write._draw", lambda *_: {})
    monkeypatch.setattr("anml.report.comparison.comparison_curves", lambda entries: [])
    monkeypatch.setattr("anml.report.comparison._draw", lambda *_: {})


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Builder]:
    """Return a function that starts an experiment of a model, of project `demo` if not said."""

    def start(group: str, project: str = "demo", changes: dict | None = None, **values) -> Builder:
        usual = {"model": "sanml", "name": group, "pixels": 28, "runs": 4, "olft": "olft", "batch": 256}
        config = COMPARED.format(**usual | {"oracle": "olft-oracle"} | values)
        return start_experiment(tmp_path / "experiments" / project / group, config, **(changes or {}))

    return start


def report(builder: Builder) -> Report:
    """Write an experiment's report and the indexes above it, as its report job does."""
    summary = write_report(builder.experiment)
    assert write_indexes(builder.experiment) == []
    return summary


def compare(*builders: Builder, flavors: tuple[str, ...] = ()) -> Comparison:
    """Write the comparison of these experiments into the folder of the first one's project."""
    experiments = [builder.experiment for builder in builders]
    return write_comparison(experiments, experiments[0].root.parent, flavors)


def contenders_of(*builders: Builder) -> list[ComparedModel]:
    """Return what these experiments put into a comparison."""
    return with_labels([c for builder in builders for c in read_compared_models(builder.experiment)])


def lines(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cells(comparison: Comparison, **wanted: str) -> list[dict[str, str]]:
    """Return the lines of comparison.csv with these values."""
    found = lines(comparison.page.parent / "comparison.csv")
    return [line for line in found if all(line[name] == value for name, value in wanted.items())]


def evaluations(comparison: Comparison) -> list[str]:
    """Return the names of what is compared, in the order of comparison.csv."""
    return list(dict.fromkeys(line["evaluation"] for line in cells(comparison)))
