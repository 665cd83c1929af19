"""The experiment folder: every path in it is a property of one object."""

from dataclasses import dataclass
from pathlib import Path

from anml.atomic import read_json

# What a `.pth` that was added is called in its folder of checkpoints.
ADDED_PTH = "model.pth"


@dataclass(frozen=True)
class JobFolder:
    """The files of one job, or of one task of an array.

    script: shared by all tasks of an array. log: everything the job printed, appended across requeues. status: state
    and progress, as the job writes them (jobs/job_status.py).
    """

    root: Path
    script: Path
    log: Path
    status: Path


@dataclass(frozen=True)
class Experiment:
    """`experiments/<project>/<group>/` and every path in it.

    tag: which of several trainings (`config.training.TrainingId.tag`); empty when there is only one.
    """

    root: Path

    @property
    def project(self) -> str:
        return self.root.parent.name

    @property
    def group(self) -> str:
        """The name of this experiment, and of the group of its W&B runs."""
        return self.root.name

    @property
    def config_file(self) -> Path:
        """The fully resolved config."""
        return self.root / "config.yml"

    @property
    def plan_file(self) -> Path:
        """Jobs, dependencies, scheduler ids, submission times."""
        return self.root / "plan.json"

    @property
    def environment_file(self) -> Path:
        """Where the experiment comes from: git commit, packages, command line."""
        return self.root / "environment.json"

    @property
    def remote_file(self) -> Path:
        """Says that this is a copy of an experiment on a cluster reached by ssh, and of which (cli/remote.py)."""
        return self.root / "remote.json"

    @property
    def code(self) -> Path:
        """The code as launched."""
        return self.root / "code"

    def snapshot(self, name: str = "") -> Path:
        """Return a copy of the code: as launched, or the `code-2` that an addition has frozen."""
        return self.root / (name or "code")

    @property
    def wandb_dir(self) -> Path:
        """Where W&B keeps the files of this experiment's runs."""
        return self.root / "wandb"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def job_of(self, status_file: Path) -> tuple[str, int | None]:
        """Return the name and the task of the job that a status file belongs to."""
        name, *task = status_file.relative_to(self.jobs).parent.parts
        return name, int(task[0].removeprefix("task-")) if task else None

    def job(self, name: str, task: int | None = None) -> JobFolder:
        root = self.jobs / name
        of_task = root if task is None else root / task_name(task)
        return JobFolder(root, root / "job.sh", of_task / "log.txt", of_task / "status.json")

    def checkpoints(self, tag: str = "") -> Path:
        return self.root / "checkpoints" / tag

    def checkpoint(self, step: int, tag: str = "") -> Path:
        return self.checkpoints(tag) / step_name(step)

    def metrics(self, tag: str = "") -> Path:
        """Return the training's log, one JSON object a line."""
        return self.root / "metrics" / (f"train-{tag}.jsonl" if tag else "train.jsonl")

    def result(self, flavor: str, step: int, tag: str = "", task: int | None = None, stage: int = 0) -> Path:
        """Return the results file of one evaluation job (or of one task of it)."""
        return self.results / f"{result_name(flavor, step, tag, task, stage)}.csv"


def experiments_folder(experiment: Experiment, in_force: Path | None = None) -> Path | None:
    """Return the folder of experiments that an experiment lies in: the one in force, or the one it was launched into.

    None where it lies in neither, as a copy does: commands must not write to the folders above it then.
    """
    root = experiment.root.resolve()
    launched_into = read_json(experiment.environment_file).get("experiments_dir")
    folders = [Path(folder) for folder in (in_force, launched_into) if folder]
    return next((folder for folder in folders if (folder / root.parent.name / root.name).resolve() == root), None)


def step_name(step: int) -> str:
    """Return `step-010000`, the name of a checkpoint's folder."""
    return f"step-{step:06d}"


def task_name(task: int) -> str:
    """Return `task-0003`, the name of the folder of an array task."""
    return f"task-{task:04d}"


def result_name(flavor: str, step: int, tag: str = "", task: int | None = None, stage: int = 0) -> str:
    """Return `<flavor>-step-010000[-seed-1][-more-1][-task-0003]`, the name of results files and evaluation jobs.

    stage: which addition to the flavor's sweep it is of; 0: the sweep as it was launched.
    """
    more = f"more-{stage}" if stage else ""
    parts = [flavor, step_name(step), tag, more, "" if task is None else task_name(task)]
    return "-".join(filter(None, parts))
