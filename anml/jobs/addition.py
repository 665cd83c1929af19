"""Additions to an experiment: flavors, larger sweeps, later checkpoints, more seeds. What is there stays as it is."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from anml.atomic import new_folder, read_json, write_json, write_text
from anml.config.evaluation import EvalConfig, Extent
from anml.config.load import dump_config
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.experiment import step_name
from anml.jobs.launch import Launch, copy_checkpoints, copy_code, describe_environment, references
from anml.jobs.plan import Job, Plan, make_plan
from anml.plugins import code_checksum, copy_sources

# Keys that say how much is done. All others say how: trainings that exist would not have been done so.
GROWING = (
    "eval", "eval_steps", "eval_checkpoints", "eval_untrained", "epochs", "max_steps", "seeds", "inner_lrs", "vary",
    "vary_later",
)  # fmt: skip


def with_more(launch: Launch, config: TrainConfig, command_line: Sequence[str]) -> Launch:
    """Return a launch of everything that a grown config asks for. Raises ConfigError if it changes what is there."""
    before, profile = launch.config, launch.profile
    config = _with_what_is_there(before, config)
    changed = [key for key, value in before if getattr(config, key) != value and key not in GROWING]
    problems = [f"{key}: how an experiment trains stays as it is; launch another one" for key in changed]
    flavors, tried = dict(config.eval), {each.choose.flavor for each in before.eval.values() if each.choose}
    for name, there in before.eval.items():
        wanted = config.eval.get(name)
        if wanted != there:
            # A choice would be made again, and differ.
            flavors[name] = (wanted and name not in tried and there.grown(wanted)) or there
            problems += _why_not_grown(name, there, wanted) if flavors[name] is there else []
    config = config.model_copy(update={"eval": flavors})
    plan = make_plan(config, profile.points_per_job, profile.max_array_size)
    planned = {job.name: job for job in plan.jobs}
    others = before.added_checkpoints.items()
    problems += [f"eval_checkpoints.{n}: stays as it is" for n, o in others if config.added_checkpoints.get(n) != o]
    groups, together = before.training_groups, config.training_groups
    if before.train_together and any(together.get(name, each) != each for name, each in groups.items()):
        problems.append("train_together: a job that is there does these trainings; launch another experiment for more")
    if lost := [job.name for job in _work(launch.plan) if planned.get(job.name) != job]:
        what = "an addition has more seeds, more values and later checkpoints; it leaves none out"
        what += ", and a flavor that chooses does not choose again" * any(each.choose for each in before.eval.values())
        problems.append(f"{lost[0]} would be another job than it was: {what}")
    if not problems and len(_work(plan)) == len(_work(launch.plan)):
        problems.append("this adds nothing: every job of it is there")
    if problems:
        raise ConfigError(problems)
    return replace(launch, config=config, plan=plan, command_line=command_line)


def _with_what_is_there(before: TrainConfig, config: TrainConfig) -> TrainConfig:
    """Return a config in which trainings and the end of training that are there have the names that they have."""
    keys, there = (dict.fromkeys(key for t in c.trainings for key, _ in t.varied) for c in (config, before))
    if later := [key for key in keys if key not in there]:
        config = config.model_copy(update={"vary_later": (*(before.vary_later or ()), *later)})
    if config.eval_steps == before.eval_steps and config.total_steps > before.total_steps:
        config = config.model_copy(update={"eval_steps": (*before.checkpoint_steps, config.total_steps)})
    return config


def named_checkpoints(config: TrainConfig, words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return `eval_checkpoints` of a config with more of them, each `PATH` or `NAME=PATH`.

    Without a name: that on the card, or with the experiment or folder that it is from. Raises ConfigError.
    """
    there = {name: dict(added) for name, added in config.added_checkpoints.items()}
    taken, problems = {config.for_training(training).display_name for training in config.trainings}, list[str]()
    for word in words:
        given, _, text = word.rpartition("=") if not Path(word).exists() else ("", "", word)
        path = Path(text).expanduser().resolve()
        usual, step = _names_and_step(path)
        name = next((name for name in ([given] if given else usual) if name not in taken | there.keys()), "")
        if not name:
            problems.append(f"--checkpoint {word}: {given or usual[0]} is there; give it a name: NAME={text}")
        there[name] = {"path": str(path), "step": step}
    if problems:
        raise ConfigError(problems)
    return there


def _names_and_step(path: Path) -> tuple[list[str], int]:
    """Return what a checkpoint may be called, as short as possible first, and its step: 0 where nothing says it."""
    stem, number = re.fullmatch(r"(.+?)(?:-(\d+))?", path.stem).groups()  # type: ignore[union-attr]
    card = read_json(path / "model.json")
    name, step = card.get("display_name", stem), card.get("step", int(number or 0))
    experiments = [folder.name for folder in path.parents if (folder / "config.yml").is_file()]
    longer = f"{name}-{next(iter(experiments), path.stem)}"
    return [re.sub(r"[^\w.-]+", "-", each) for each in (name, longer, f"{longer}-{step_name(step)}")], step


def _why_not_grown(name: str, there: EvalConfig, wanted: EvalConfig | None) -> list[str]:
    changed = [key for key, value in there if wanted and getattr(wanted, key) != value]
    if changed and set(changed) <= Extent.model_fields.keys() and not there.in_one_job and not there.is_validation:
        return [f"eval.{name}: {', '.join(changed)} may grow, and must hold all that is there"]
    return [f"eval.{name}: this flavor is there with other settings; add the new one under another name"]


def added_jobs(before: Launch, after: Launch) -> Plan:
    """Return the jobs that are new, and the report, which is written again after them."""
    there = {job.name for job in _work(before.plan)}
    return Plan(tuple(job for job in after.plan.jobs if job.name not in there))


def with_code(before: Launch, after: Launch, is_new: bool) -> Launch:
    """Return a launch whose new jobs and report run the newest copy of the code, or one of the present code."""
    name = before.snapshots.get("report", "")
    if is_new:
        name = next(n for n in (f"code-{i}" for i in count(2)) if not before.experiment.snapshot(n).exists())
    added = {job.name: name for job in added_jobs(before, after).jobs if name}
    return replace(after, snapshots=after.snapshots | added)


def write_addition(before: Launch, after: Launch) -> None:
    """Write the grown config, and what was added by which command. Raises ConfigError if somebody else was first."""
    experiment, user_code = before.experiment, references(after.config, after.profile)
    if experiment.config_file.read_text(encoding="utf-8") != dump_config(before.config):
        message = f"{experiment.root}: its config has changed just now; look at it, and add again"
        raise ConfigError(message)
    new_code = after.snapshots.get("report", "")
    has_new_code = new_code != before.snapshots.get("report", "")
    if has_new_code:
        with new_folder(experiment.snapshot(new_code)) as folder:
            copy_code(folder, user_code)
    for name, source in copy_sources(user_code).items():
        target = experiment.snapshot(new_code) / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
    copy_checkpoints(after.config, experiment)
    environment = read_json(experiment.environment_file)
    addition = {
        "added": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": list(after.command_line),
        "jobs": [job.name for job in _work(added_jobs(before, after))],
        "code": new_code or "code",
        "code_checksum": code_checksum(experiment.snapshot(new_code)),
    }
    if has_new_code:
        present = describe_environment(())
        addition |= {key: present[key] for key in ("git_commit", "git_diff", "python", "packages")}
    additions = [*environment.get("additions", ()), addition]
    write_json(experiment.environment_file, environment | {"additions": additions})
    write_text(experiment.config_file, dump_config(after.config))


def _work(plan: Plan) -> list[Job]:
    return [job for job in plan.jobs if job.kind != "report"]
