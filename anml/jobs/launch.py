"""From a checked config to an experiment folder: frozen code, where it comes from, and what was submitted."""

import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anml.atomic import new_folder, read_json, write_json, write_text
from anml.config.load import REFERENCE_KEYS, dump_config, load_experiment_config
from anml.config.profile import ClusterProfile, SbatchOptions, WandbMode
from anml.config.training import TrainConfig
from anml.config.yaml import KeyPath
from anml.errors import ConfigError, JobError
from anml.experiment import ADDED_PTH, Experiment
from anml.jobs.memory import memory_problems
from anml.jobs.plan import Plan
from anml.jobs.schedulers import Scheduler, scheduler_class
from anml.plugins import USER_CODE, code_checksum, copy_sources, is_reference

REPOSITORY = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (REPOSITORY / "pyproject.toml").is_file()  # Else this package is installed, or frozen code.
ENTRY_POINTS = ("launch_train.py", "train_anml.py", "eval_anml.py")
# Beside code that was sent here to be launched: where it comes from, in place of what this machine would say.
ORIGIN = REPOSITORY / "origin.json"


def references(config: TrainConfig, profile: ClusterProfile) -> list[str]:
    """Return the references to a user's own code in a config and a profile."""
    data = config.model_dump(mode="json")
    values = [value for key in REFERENCE_KEYS for value in _values(data, key)] + [profile.scheduler]
    return list(dict.fromkeys(value for value in values if isinstance(value, str) and is_reference(value)))


def _values(data: Any, path: KeyPath) -> list[Any]:
    if not path or not isinstance(data, dict):
        return [] if path else [data]
    keys = data if path[0] == "*" else [path[0]]
    return [value for key in keys for value in _values(data.get(key), path[1:])]


def copy_code(target: Path, user_references: Sequence[str] = ()) -> None:
    """Copy the package, its entry points and the user's own code: editing them changes nothing in queued jobs."""
    copies = {"anml": REPOSITORY / "anml"} | {name: REPOSITORY / name for name in ENTRY_POINTS}
    for name, source in (copies | copy_sources(user_references)).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy2(source, target / name)


def describe_environment(command_line: Sequence[str]) -> dict[str, Any]:
    """Return where an experiment comes from. Versions are those of the launching python."""
    packages = [package.metadata for package in importlib.metadata.distributions()]  # Read at every access.
    versions = {package["Name"]: package["Version"] for package in packages if package["Name"]}
    return {
        "launch_id": uuid.uuid4().hex,
        "launched": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": list(command_line),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": platform.node(),
        # From package metadata: the launcher does not import torch.
        "packages": dict(sorted(versions.items(), key=lambda item: item[0].lower())),
        **read_json(ORIGIN),
    }


def _git(*arguments: str) -> str | None:
    """Return git's answer about the repository, or None where there is no git or no repository.

    An installed package may lie in somebody's repository (in a virtual environment), which says nothing about it.
    """
    if not IS_CHECKOUT:
        return None
    try:
        return subprocess.check_output(
            ["git", "-C", str(REPOSITORY), *arguments], text=True, stderr=subprocess.DEVNULL, timeout=20
        ).strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


@dataclass(frozen=True)
class Launch:
    """Everything decided before anything is created.

    job_options: by name of a job, the sbatch options that retries have given it. retry_options: those of this retry.
    snapshots: by name of a job, which copy of the code it runs, where it is not the first (`Experiment.snapshot`).
    """

    config: TrainConfig
    experiment: Experiment
    profile: ClusterProfile
    wandb_mode: WandbMode
    plan: Plan
    command_line: Sequence[str] = ()
    job_options: dict[str, SbatchOptions] = field(default_factory=dict)
    retry_options: SbatchOptions = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)

    def make_scheduler(self) -> Scheduler:
        scheduler = scheduler_class(self.profile.scheduler)(self.experiment, self.profile, self.wandb_mode)
        scheduler.job_options = self.job_options
        scheduler.snapshots = read_plan_file(self.experiment).get("snapshots", {}) | self.snapshots
        return scheduler


def new_group(project: Path) -> str:
    """Return a readable name that no experiment of the project has: two words and a number."""
    import coolname

    endings = [path.name.rsplit("-", 1)[-1] for path in project.glob("*")]
    number = max((int(ending) for ending in endings if ending.isdigit()), default=0) + 1
    return f"{coolname.generate_slug(2)}-{number}"


def check_with_model(config: TrainConfig, profile: ClusterProfile, code: Path = REPOSITORY) -> list[str]:
    """Check what needs the model and the data, in a child process: this one never imports torch. Raises ConfigError.

    Returns notices of the data. code: the copy of this package that checks, since its jobs will run it.
    """
    # The child runs in the current folder, where modules that the config refers to may be; -P and the path make sure
    # that it imports this package, not an `anml` that happens to be in that folder.
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-P", "-m", "anml", "check-config"], env=os.environ | {"PYTHONPATH": path},
        input=dump_config(config), capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        answer = json.loads(result.stdout.splitlines()[-1])
        # Code of an earlier version says nothing of memory.
        problems = answer["problems"] + memory_problems(
            answer.get("needs", ()), answer.get("gpu", 0), profile, config.device
        )
    except (ValueError, IndexError):
        if result.returncode == ConfigError.exit_code:  # Code of an earlier version does not know a key.
            raise ConfigError(result.stderr.strip()) from None
        message = f"the check of the config could not run: {result.stderr.strip()[-2000:]}"
        raise JobError(message) from None
    if problems:
        raise ConfigError(problems)
    return answer.get("notices", [])


def create_experiment(launch: Launch, experiments: Path) -> None:
    """Make the experiment folder, or accept an existing one whose config is the same. Raises ConfigError.

    experiments: the folder of experiments; the report job writes its index pages.
    """
    experiment = launch.experiment
    if experiment.remote_file.exists():
        message = f"{experiment.root}: is the copy of an experiment on another cluster; choose another --group"
        raise ConfigError(message)
    config_text = dump_config(launch.config)
    if experiment.config_file.exists():
        _check_same(launch, config_text)
        return
    experiment.root.parent.mkdir(parents=True, exist_ok=True)
    # Made under another name: the group appears whole, and of two launches at once, one gets it.
    with tempfile.TemporaryDirectory(dir=experiment.root.parent, prefix=".new-") as name:
        new = Experiment(Path(name) / experiment.group)
        copy_code(new.code, references(launch.config, launch.profile))
        environment = describe_environment(launch.command_line)
        environment |= {"experiments_dir": str(experiments), "code_checksum": code_checksum(new.code)}
        write_json(new.environment_file, environment)
        write_text(new.config_file, config_text)
        copy_checkpoints(launch.config, new)
        try:
            new.root.rename(experiment.root)
        except OSError:
            message = f"--group {experiment.group}: {experiment.root} exists and is no experiment; choose another name"
            raise ConfigError(message) from None


def copy_checkpoints(config: TrainConfig, experiment: Experiment) -> None:
    """Copy the checkpoints of other trainings that are evaluated too: what becomes of the originals is no matter."""
    for name, added in config.added_checkpoints.items():
        source, target = Path(added.path), experiment.checkpoint(added.step, name)
        if target.exists():
            continue
        with new_folder(target) as folder:
            for file in [source] if source.is_file() else sorted(source.glob("model.*")):
                shutil.copy2(file, folder / (ADDED_PTH if source.is_file() else file.name))


def record(launch: Launch, ids: dict[str, str], forget: Sequence[str] = ()) -> None:
    """Write plan.json: the jobs, and the scheduler's ids of those submitted."""
    before = read_plan_file(launch.experiment)
    submitted = {name: job for name, job in before.get("submitted", {}).items() if name not in forget}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    submitted |= {
        name: {"id": id_, "time": now} for name, id_ in ids.items() if submitted.get(name, {}).get("id") != id_
    }
    data = {
        "root": str(launch.experiment.root),
        "cluster": launch.profile.model_dump(mode="json"),
        "wandb": launch.wandb_mode,
        "jobs": launch.plan.to_json(),
        "submitted": submitted,
    } | ({"options": launch.job_options} if launch.job_options else {})
    if snapshots := before.get("snapshots", {}) | launch.snapshots:
        data["snapshots"] = snapshots
    write_json(launch.experiment.plan_file, data)


def load_launch(experiment: Experiment) -> Launch:
    """Return the launch of an experiment that exists, out of its folder. Raises ConfigError."""
    data = read_plan_file(experiment)
    if not data:
        message = f"{experiment.root}: nothing was submitted here (there is no {experiment.plan_file.name})"
        raise ConfigError(message)
    config = load_experiment_config(experiment.config_file).config
    profile = ClusterProfile(**data["cluster"])
    file, _, backend = profile.scheduler.rpartition(":")
    frozen = experiment.code / USER_CODE / Path(file).name
    if file.endswith(".py") and frozen.is_file():
        profile = profile.model_copy(update={"scheduler": f"{frozen}:{backend}"})
    plan, options, snapshots = Plan.from_json(data["jobs"]), data.get("options", {}), data.get("snapshots", {})
    return Launch(config, experiment, profile, data["wandb"], plan, job_options=options, snapshots=snapshots)


def moved_from(experiment: Experiment) -> Path | None:
    """Return where an experiment was when its jobs were submitted, if that is elsewhere. Raises ConfigError for a copy.

    Jobs and their scripts belong to the folder there.
    """
    before = Path(read_plan_file(experiment).get("root", experiment.root))
    if before.resolve() == experiment.root.resolve():
        return None
    names = [read_json(each.environment_file).get("launch_id") for each in (experiment, Experiment(before))]
    if names[0] == names[1]:
        message = f"{experiment.root}: is a copy of {before}, whose jobs these are: use it there, or remove it there"
        raise ConfigError(message)
    return before


def read_plan_file(experiment: Experiment) -> dict[str, Any]:
    """Return the content of plan.json, empty when nothing was submitted."""
    return read_json(experiment.plan_file)


def _check_same(launch: Launch, config_text: str) -> None:
    """Raise ConfigError unless an experiment that exists has this config, and the jobs that this launch plans."""
    experiment = launch.experiment
    before = experiment.config_file.read_text(encoding="utf-8").splitlines()
    pairs = itertools.zip_longest(before, config_text.splitlines(), fillvalue="(nothing)")
    different = [f"  {old.strip()}  ->  {new.strip()}" for old, new in pairs if old != new]
    if different:
        shown = "\n".join(different[:5])
        message = (
            f"--group {experiment.group}: this group exists with another config, so it is left alone:\n{shown}\n"
            "Choose another --group (or none, for a new one), or launch with the same config to complete it; "
            "`python -m anml add` adds to it."
        )
        raise ConfigError(message)
    jobs = read_plan_file(experiment).get("jobs")
    if jobs is not None and Plan.from_json(jobs) != launch.plan:
        message = (
            f"--group {experiment.group}: its sweeps were cut into other jobs than the profile "
            f"{launch.profile.name} asks for now (points_per_job, max_array_size); results would be counted twice. "
            f"Complete it as it is with `python -m anml retry`, or choose another --group."
        )
        raise ConfigError(message)


def experiments_dir(chosen: str | None) -> Path:
    """Return where experiments are kept: the option, ANML_EXPERIMENTS, or `experiments`.

    The last is beside the code in a checkout, and in the current folder where the package is installed.
    """
    usual = REPOSITORY / "experiments" if IS_CHECKOUT else "experiments"
    return Path(chosen or os.environ.get("ANML_EXPERIMENTS") or usual).expanduser().resolve()
