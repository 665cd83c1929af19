"""Runs a launch and tells a person how it went: job ids on a cluster, the accuracy table on the machine at hand."""

import shlex

from anml.cli.arguments import EXIT_DONE, EXIT_FAILED
from anml.jobs.job_status import read_status
from anml.jobs.launch import Launch, experiments_dir
from anml.jobs.plan import Job
from anml.jobs.schedulers import scheduler_class
from anml.jobs.submission import is_done, run_launch


def run_and_tell(launch: Launch) -> int:
    """Run a launch. Returns the exit code."""
    if not scheduler_class(launch.profile.scheduler).runs_here:
        run_launch(launch, lambda ids: _announce(launch, ids))
        return EXIT_DONE
    try:
        run_launch(launch)
    except KeyboardInterrupt:
        print(f"\nStopped. To continue: python -m anml retry {_address(launch)}")
        # This launcher's own jobs have ended; those of one that was killed it only waited for.
        if others := _running(launch):
            print(f"Not stopped, another launcher started it: {', '.join(others)}. "
                  f"To end it: python -m anml cancel {_address(launch)}")  # fmt: skip
        raise
    _print_report(launch)
    tasks = [(job, task) for job, task in _tasks(launch) if job.kind != "report"]
    undone = list(dict.fromkeys(job.name for job, task in tasks if not is_done(launch.experiment, job, task)))
    if undone:
        print(f"Not done: {', '.join(undone)}. See: python -m anml status {_address(launch)}")
    return EXIT_FAILED if undone else EXIT_DONE


def _tasks(launch: Launch) -> list[tuple[Job, int | None]]:
    return [(job, task) for job in launch.plan.jobs for task in job.task_numbers]


def _running(launch: Launch) -> list[str]:
    folder = launch.experiment.job
    states = {job.label(task): read_status(folder(job.name, task).status) for job, task in _tasks(launch)}
    return [name for name, status in states.items() if status.state == "running" and not status.has_vanished]


def _announce(launch: Launch, ids: dict[str, str]) -> None:
    print(f"Submitted {len(ids)} jobs:" if ids else "Nothing to submit: every job is done, waits or runs.")
    for name, id_ in ids.items():
        print(f"  {id_}  {name}")
    print(f"Follow them with  python -m anml status {_address(launch)} --watch")


def _print_report(launch: Launch) -> None:
    table = launch.experiment.report / "accuracy.txt"
    if table.is_file():
        print(f"\n{table.read_text(encoding='utf-8')}")
    page = launch.experiment.report / "index.html"
    print(f"Report: {page}" if page.is_file() else "There is no report: see the log of the report job.")


def _address(launch: Launch) -> str:
    """Return how commands name the experiment: short where it lies in the usual place."""
    root = launch.experiment.root
    usual = root.parent.parent == experiments_dir(None)
    return shlex.quote(f"{launch.experiment.project}/{launch.experiment.group}" if usual else str(root))
