"""The plan: an experiment's jobs and their dependencies, as pure data. A dry run shows it, a launch submits it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

from anml.config.evaluation import EvalConfig
from anml.config.training import TrainConfig, TrainingId
from anml.experiment import result_name

JobKind = Literal["train", "evaluate", "report"]


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

    def label(self, task: int | None) -> str:
        """Return the job's name, with the number of one of its tasks."""
        return self.name if task is None else f"{self.name}[{task}]"


@dataclass(frozen=True)
class Plan:
    """All jobs of an experiment, dependencies before dependents."""

    jobs: tuple[Job, ...]

    def job(self, name: str) -> Job:
        """Return a job by name."""
        return next(job for job in self.jobs if job.name == name)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the plan as plain data."""
        return [asdict(job) for job in self.jobs]

    @staticmethod
    def from_json(data: Iterable[dict[str, Any]]) -> "Plan":
        """Return the plan that `to_json` wrote."""
        return Plan(tuple(Job(**{**job, "argv": tuple(job["argv"]), "after": tuple(job["after"])}) for job in data))


def make_plan(config: TrainConfig, points_per_job: int | None = None, max_array_size: int = 1001) -> Plan:
    """Return the jobs of an experiment (DESIGN: training in segments, evaluations after each, a report at the end)."""
    jobs: list[Job] = []
    # What one job trains: one training, or all of them.
    for trained in [config.trainings] if config.train_together else [(one,) for one in config.trainings]:
        previous: tuple[str, ...] = ()
        for number, step in enumerate(config.checkpoint_steps):
            segment = _segment(step, trained[0] if len(trained) == 1 else TrainingId(), previous)
            jobs.append(segment)
            steps = [0, step] if number == 0 and config.eval_untrained else [step]
            for one, evaluated, (flavor, evaluation) in product(trained, steps, config.eval.items()):
                jobs += _evaluation(flavor, evaluation, evaluated, one, segment.name, points_per_job, max_array_size)
            previous = (segment.name,)
    report = Job("report", "report", ("-m", "anml", "report-job"), tuple(job.name for job in jobs), after_any=True)
    return Plan((*jobs, report))


def _segment(step: int, one: TrainingId, previous: tuple[str, ...]) -> Job:
    argv = ("train_anml.py", "--until-step", str(step), *one.flags())
    return Job(result_name("train", step, one.tag), "train", argv, previous)


def _evaluation(
    flavor: str,
    config: EvalConfig,
    step: int,
    one: TrainingId,
    segment: str,
    points_per_job: int | None,
    max_array_size: int,
) -> list[Job]:
    """Return one job for a flavor, or arrays of jobs when its sweep has more points than a job may take."""
    name = result_name(flavor, step, one.tag)
    argv = ["eval_anml.py", "--flavor", flavor, "--step", str(step), *one.flags("--train-")]
    points = config.count_trajectories()
    if points_per_job is None or points <= points_per_job:
        return [Job(name, "evaluate", tuple(argv), (segment,))]
    argv += ["--points-per-job", str(points_per_job)]
    tasks = -(-points // points_per_job)
    jobs = []
    for part, first in enumerate(range(0, tasks, max_array_size)):
        # MaxArraySize caps the largest index as well, so every array counts from 0 and adds its own offset.
        count = min(max_array_size, tasks - first)
        part_name = name if tasks <= max_array_size else f"{name}-part-{part + 1}"
        part_argv = (*argv, "--first-task", str(first))
        jobs.append(Job(part_name, "evaluate", part_argv, (segment,), tasks=count))
    return jobs
