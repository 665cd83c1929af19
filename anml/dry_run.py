"""What a launch would do, as text: the dependency graph, every command line, every script."""

import shlex

from anml.launch import Launch
from anml.plan import Job
from anml.schedulers.select import make_scheduler


def describe(launch: Launch) -> str:
    """Return the plan as it would be submitted. Job ids, not known yet, are shown as <job name>."""
    scheduler = make_scheduler(launch.experiment, launch.profile, launch.wandb_mode)
    parts = [f"Experiment folder: {launch.experiment.root} (not created)", "", "Jobs:"]
    parts += [f"  {_graph_line(job)}" for job in launch.plan.jobs]
    for job in launch.plan.jobs:
        command = scheduler.command(job, [f"<{name}>" for name in job.after], job.task_numbers)
        parts += ["", f"--- {launch.experiment.job(job.name).script}", f"$ {shlex.join(command)}"]
        parts.append(scheduler.render(job).rstrip())
    return "\n".join(parts)


def _graph_line(job: Job) -> str:
    tasks = "" if job.tasks is None else f" [{job.tasks} tasks]"
    if not job.after:
        return job.name + tasks
    if job.after_any:
        return f"{job.name}{tasks}  <- after all of the above, whatever became of them"
    return f"{job.name}{tasks}  <- after {', '.join(job.after)} succeeded"
