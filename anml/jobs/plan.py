"""The plan: an experiment's jobs and their dependencies, as pure data. A dry run shows it, a launch submits it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

from anml.config.evaluation import EvalConfig
from anml.config.training import TrainConfig
from anml.config.vary import TrainingId
from anml.experiment import result_name, task_name

JobKind = Literal["train", "evaluate", "report"]
# The name of the job that writes the report.
REPORT = "report"
# Options of a job that say which training it is of; each has a value.
_OF_TRAINING = ("--seed", "--inner-lr", "--train-seed", "--train-inner-lr", "--training")


@dataclass(frozen=True)
class Job:
    """One job. `argv` follows `python`, relative to the experiment's code folder.

    after: names of jobs that come first; all must succeed, unless `after_any`, then it is enough that they ended.
    tasks: number of array tasks, numbered from 0 (None: not an array).
    """

    name: str
    kind: JobKind
    argv: tuple[str, ...]
    after: tuple[str, ...] = ()
    after_any: bool = False
    tasks: int | None = None

    @property
    def task_numbers(self) -> tuple[int | None, ...]:
        """Numbers of the tasks, or a single None for a job that is no array."""
        return (None,) if self.tasks is None else tuple(range(self.tasks))

    def results_file(self, task: int | None) -> str:
        """Return the name of the file that an evaluation, or a task of it, writes its results to."""
        if task is None:
            return f"{self.name}.csv"
        # An array that is cut counts on: its parts write into one series of files.
        first = dict(pairwise(self.argv)).get("--first-task", "0")
        return f"{re.sub(r'-part-[0-9]+$', '', self.name)}-{task_name(int(first) + task)}.csv"

    def has_results(self, folder: Path, task: int | None) -> bool:
        """Say whether the results of an evaluation are in their folder; other jobs have none."""
        return self.kind != "evaluate" or (folder / self.results_file(task)).is_file()

    @property
    def family(self) -> tuple[str, ...]:
        """What it has in common with the jobs that differ from it in their training alone."""
        names = [index for index, word in enumerate(self.argv) if word in _OF_TRAINING]
        return (self.kind, *(word for index, word in enumerate(self.argv) if not {index, index - 1} & set(names)))

    def label(self, task: int | None) -> str:
        """Return the job's name, with the number of one of its tasks."""
        return self.name if task is None else f"{self.name}[{task}]"


@dataclass(frozen=True)
class Plan:
    """All jobs of an experiment, dependencies before dependents."""

    jobs: tuple[Job, ...]

    def job(self, name: str) -> Job:
        return next(job for job in self.jobs if job.name == name)

    def batches(self, at_least: float) -> list[list[Job]]:
        """Return the jobs in the order of their submission, those together that differ in their training alone.

        Dependencies come before dependents. at_least: where no batch would have so many, each job is one by itself.
        """
        families: dict[tuple[str, ...], list[Job]] = {}
        for job in self.jobs:
            families.setdefault(job.family, []).append(job)
        is_worthwhile = max(map(len, families.values()), default=0) >= at_least
        return list(families.values()) if is_worthwhile else [[job] for job in self.jobs]

    def to_json(self) -> list[dict[str, Any]]:
        return [dict(vars(job)) for job in self.jobs]

    @staticmethod
    def from_json(data: Iterable[dict[str, Any]]) -> "Plan":
        return Plan(tuple(Job(**{**job, "argv": tuple(job["argv"]), "after": tuple(job["after"])}) for job in data))


def make_plan(config: TrainConfig, points_per_job: int | None = None, max_array_size: int = 1001) -> Plan:
    """Return the jobs of an experiment: training in segments, evaluations after each, a report at the end."""

    def cut(sweeps: Iterable[tuple[Job, int]]) -> list[Job]:
        return [part for job, points in sweeps for part in _cut(job, points, points_per_job, max_array_size)]

    jobs: list[Job] = []
    swept: dict[tuple[str, int, TrainingId], tuple[str, ...]] = {}
    for together, trained in config.training_groups.items():
        previous: tuple[str, ...] = ()
        for number, step in enumerate(config.checkpoint_steps):
            argv = ("train_anml.py", "--until-step", str(step), *together.flags())
            segment = Job(result_name("train", step, together.tag), "train", argv, previous)
            jobs.append(segment)
            steps = [0, step] if number == 0 and config.eval_untrained else [step]
            sweeps = [(flavor, evaluation) for flavor, evaluation in config.eval.items() if not evaluation.choose]
            for training, evaluated, (flavor, evaluation) in product(trained, steps, sweeps):
                job = _evaluation(flavor, evaluated, training, (segment.name,))
                parts = cut(_stages(job, evaluation))
                swept[flavor, evaluated, training] = tuple(part.name for part in parts)
                jobs += parts
            previous = (segment.name,)
    jobs += _choices(config, swept)
    jobs += [part for name in config.added_checkpoints for part in cut(_of_checkpoint(config, name))]
    report = Job(REPORT, "report", ("-m", "anml", "report-job"), tuple(job.name for job in jobs), after_any=True)
    return Plan((*jobs, report))


def _evaluation(flavor: str, step: int, training: TrainingId, after: tuple[str, ...]) -> Job:
    argv = ("eval_anml.py", "--flavor", flavor, "--step", str(step), *training.flags("--train-"))
    return Job(result_name(flavor, step, training.tag), "evaluate", argv, after)


def _choices(config: TrainConfig, sweeps: Mapping[tuple[str, int, TrainingId], tuple[str, ...]]) -> list[Job]:
    """Return the jobs that score what was chosen on held-out classes, each after all sweeps that it chooses from.

    Trainings that differ in their seed alone are one model, for which the choice is made once.
    """
    jobs = []
    same: dict[TrainingId, list[TrainingId]] = {}
    for training in config.trainings:
        same.setdefault(training.model, []).append(training)
    for training, (flavor, evaluation) in product(config.trainings, config.eval.items()):
        for step, steps in config.choices(evaluation).items():
            tried = product([str(evaluation.choose.flavor)], steps, same[training.model]) if evaluation.choose else ()
            jobs.append(_evaluation(flavor, step, training, sum((sweeps[key] for key in tried), ())))
    return jobs


def _of_checkpoint(config: TrainConfig, name: str) -> list[tuple[Job, int]]:
    """Return the jobs that evaluate a checkpoint of another training, which has nothing to choose on."""
    step, sweeps = config.added_checkpoints[name].step, []
    for flavor, evaluation in config.eval.items():
        argv = ("eval_anml.py", "--flavor", flavor, "--step", str(step), "--checkpoint", name)
        job = Job(result_name(flavor, step, name), "evaluate", argv)
        sweeps += [] if evaluation.choose else _stages(job, evaluation)
    return sweeps


def _stages(job: Job, evaluation: EvalConfig) -> list[tuple[Job, int]]:
    """Return a job for each stage of a sweep, with the number of trajectories that those before it do not have."""
    stages, before = [], 0
    for number, stage in enumerate(evaluation.stages):
        count = stage.count_trajectories()
        more = replace(job, name=f"{job.name}-more-{number}", argv=(*job.argv, "--stage", str(number)))
        # An array's tasks do not know each other's results.
        stages.append((more if number else job, 0 if stage.in_one_job else count - before))
        before = count
    return stages


def _cut(job: Job, points: int, points_per_job: int | None, max_array_size: int) -> list[Job]:
    """Return the job of a sweep, or the arrays of jobs for one that has more points than a job may take."""
    if points_per_job is None or points <= points_per_job:
        return [job]
    argv = (*job.argv, "--points-per-job", str(points_per_job))
    tasks = -(-points // points_per_job)
    arrays = []
    for part, first in enumerate(range(0, tasks, max_array_size)):
        # MaxArraySize caps the largest index as well, so every array counts from 0 and adds its own offset.
        count = min(max_array_size, tasks - first)
        name = job.name if tasks <= max_array_size else f"{job.name}-part-{part + 1}"
        arrays.append(replace(job, name=name, argv=(*argv, "--first-task", str(first)), tasks=count))
    return arrays
