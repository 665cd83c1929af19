"""Additions to an experiment: flavors, larger sweeps, later checkpoints, more seeds. What is there stays as it is."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from anml.atomic import read_json, write_json, write_text
from anml.config.evaluation import EvalConfig, Extent
from anml.config.load import dump_config
from anml.config.training import TrainConfig
from anml.errors import ConfigError
from anml.jobs.launch import Launch, references
from anml.jobs.plan import Job, Plan, make_plan
from anml.plugins import copy_sources

# Keys that say how much is done. All others say how: trainings that exist would not have been done so.
GROWING = ("eval", "eval_steps", "eval_untrained", "epochs", "max_steps", "seeds", "inner_lrs", "vary")


def with_more(launch: Launch, config: TrainConfig, command_line: Sequence[str]) -> Launch:
    """Return a launch of everything that a grown config asks for. Raises ConfigError if it changes what is there."""
    before, profile = launch.config, launch.profile
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
    if lost := [job.name for job in _work(launch.plan) if planned.get(job.name) != job]:
        what = "an addition has more seeds, more values and later checkpoints; it leaves none out"
        problems.append(f"{lost[0]} would be another job than it was: {what}")
    if not problems and len(_work(plan)) == len(_work(launch.plan)):
        problems.append("this adds nothing: every job of it is there")
    if problems:
        raise ConfigError(problems)
    return replace(launch, config=config, plan=plan, command_line=command_line)


def _why_not_grown(name: str, there: EvalConfig, wanted: EvalConfig | None) -> list[str]:
    changed = [key for key, value in there if wanted and getattr(wanted, key) != value]
    if changed and set(changed) <= Extent.model_fields.keys() and not there.choose and not there.is_validation:
        return [f"eval.{name}: {', '.join(changed)} may grow, and must hold all that is there"]
    return [f"eval.{name}: this flavor is there with other settings; add the new one under another name"]


def added_jobs(before: Launch, after: Launch) -> Plan:
    """Return the jobs that are new, and the report, which is written again after them."""
    there = {job.name for job in _work(before.plan)}
    return Plan(tuple(job for job in after.plan.jobs if job.name not in there))


def write_addition(before: Launch, after: Launch) -> None:
    """Write the grown config, and what was added by which command. Raises ConfigError if somebody else was first."""
    experiment = before.experiment
    if experiment.config_file.read_text(encoding="utf-8") != dump_config(before.config):
        message = f"{experiment.root}: its config has changed just now; look at it, and add again"
        raise ConfigError(message)
    for name, source in copy_sources(references(after.config, after.profile)).items():
        target = experiment.code / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
    environment = read_json(experiment.environment_file)
    addition = {
        "added": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": list(after.command_line),
        "jobs": [job.name for job in _work(added_jobs(before, after))],
    }
    additions = [*environment.get("additions", ()), addition]
    write_json(experiment.environment_file, environment | {"additions": additions})
    write_text(experiment.config_file, dump_config(after.config))


def _work(plan: Plan) -> list[Job]:
    return [job for job in plan.jobs if job.kind != "report"]
