"""What is taken out of experiments: `report` (and its job), `compare`, `export`, `archive`, `sync`."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from anml.atomic import wait_until
from anml.cli.arguments import (
    EXIT_DONE,
    EXIT_FAILED,
    add_address_arguments,
    add_experiments_dir_argument,
    add_job_arguments,
    check_output,
    collecting,
    find_experiment,
    find_experiments,
    print_notices,
)
from anml.config.load import load_experiment_config
from anml.config.training import TrainConfig
from anml.config.vary import TrainingId
from anml.errors import ConfigError, JobError
from anml.experiment import Experiment, experiments_folder
from anml.jobs.job import JobContext, array_task, check_folder, requeue_killed, run_job
from anml.jobs.job_status import BEAT_SECONDS, ENDED, RECENT_SECONDS
from anml.jobs.launch import experiments_dir, read_plan_file
from anml.jobs.plan import Plan
from anml.jobs.status import JobOutcome, read_jobs
from anml.tracking import Tracker

report_arguments = sync_arguments = add_address_arguments


def report(options: argparse.Namespace) -> None:
    experiment = find_experiment(options)
    from anml.report.index import write_indexes
    from anml.report.write import write_report

    summary = write_report(experiment)
    print_notices(write_indexes(experiment, experiments_dir(options.experiments_dir)))
    print((experiment.report / "accuracy.txt").read_text(encoding="utf-8"))
    print(f"Report: {summary.page}")


def report_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", required=True)
    add_job_arguments(parser)


def requeue_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--job", required=True)


def requeue_job(options: argparse.Namespace) -> int:
    experiment = Experiment(Path(options.run_dir))
    job = Plan.from_json(read_plan_file(experiment)["jobs"]).job(options.job)
    # Several jobs may be the tasks of an array, which are no tasks of these jobs.
    return requeue_killed(experiment, options.job, array_task() if job.tasks else None)


def report_job(options: argparse.Namespace) -> int:
    """Write the report and send the best accuracies to W&B."""
    experiment = Experiment(Path(options.run_dir))

    def work(context: JobContext) -> bool:
        from anml.report.index import write_indexes
        from anml.report.write import write_report

        check_folder(experiment.root, options.min_free_gb)
        context.progress(0, 1, "reports")
        wait_until(lambda: not _unseen(experiment), experiment.root)
        while True:
            ends = _ends(experiment)
            summary = write_report(experiment)
            # Where Slurm has a job twice, the copy that leaves ends the wait of this one. The dead fall silent.
            wait_until(lambda: not _running(experiment), experiment.root, RECENT_SECONDS + BEAT_SECONDS)
            if ends == _ends(experiment):
                break
        print_notices(write_indexes(experiment))
        config = load_experiment_config(experiment.config_file).config
        tracker = Tracker(experiment, config, "report", "report", options.wandb)
        tracker.summary(summary.best_accuracies())
        tracker.finish()
        context.progress(1, 1, "reports")
        if late := _running(experiment) + [name for name, end in _ends(experiment).items() if end != ends.get(name)]:
            message = f"{', '.join(late)}: runs, or has ended since the report was written: use retry when it has ended"
            raise JobError(message)
        if lost := [job.label for job in _unseen(experiment) if job.state == "done"]:
            message = f"{', '.join(lost)}: done, but no results are in {experiment.results}: the report is incomplete"
            raise JobError(message)
        return True

    return run_job(experiment, options.job, None, work)


def _ends(experiment: Experiment) -> dict[str, tuple[int, float | None]]:
    return {job.label: (job.status.attempt, job.status.ended) for job in read_jobs(experiment)}


def _running(experiment: Experiment) -> list[str]:
    return [job.label for job in read_jobs(experiment) if job.status.is_writing]


def _unseen(experiment: Experiment) -> list[JobOutcome]:
    """Return the jobs whose end, or whose results, this machine does not see (yet)."""
    return [job for job in read_jobs(experiment) if not (_has_ended(job) and _has_results(experiment, job))]


def _has_ended(outcome: JobOutcome) -> bool:
    return outcome.status.state in ENDED or outcome.state == "skipped" or outcome.status.has_vanished


def _has_results(experiment: Experiment, outcome: JobOutcome) -> bool:
    return outcome.state != "done" or outcome.job.has_results(experiment.results, outcome.task)


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    what = "all experiments of a project that have results, or these, in this order"
    parser.add_argument("names", metavar="PROJECT[/GROUP]", nargs="+", help=what)
    flavor = "only this flavor, whatever an experiment calls it (repeatable; default: all)"
    parser.add_argument("--flavor", metavar="NAME", action="append", default=[], help=flavor)
    parser.add_argument("--output", metavar="DIR", type=Path, help="where to write (default: the project's folder)")
    add_experiments_dir_argument(parser)


def compare(options: argparse.Namespace) -> None:
    root = experiments_dir(options.experiments_dir)
    experiments = _experiments(root, options.names)
    output = _output(options.output, experiments, root)
    # A comparison replaces those written before.
    earlier = [path for path in output.glob("comparison*") if path.suffix in (".html", ".csv", ".txt", ".png")]
    check_output("--output", *sorted(earlier), output / "comparison.html")
    from anml.report.comparison import write_comparison
    from anml.report.index import write_indexes

    comparison = write_comparison(experiments, output, options.flavor, shlex.join(["python", *options.command_line]))
    if output == experiments[0].root.parent:
        print_notices(write_indexes(experiments[0], root))  # The index pages link to the comparison.
    print(comparison.text)
    print(f"\nComparison: {comparison.page}")


def _experiments(root: Path, names: Sequence[str]) -> list[Experiment]:
    """Return the experiments of names, each once. Raises ConfigError with every unknown name."""
    experiments: dict[Path, Experiment] = {}
    problems: list[str] = []
    for name in names:
        with collecting(problems):
            experiments |= {named.root: named for named in find_experiments(root, name, or_project=True)}
    if problems:
        raise ConfigError(problems)
    return list(experiments.values())


def _output(chosen: Path | None, experiments: Sequence[Experiment], root: Path) -> Path:
    """Return the folder to write to: the chosen one, else that of the project."""
    if chosen is not None:
        return chosen.expanduser().resolve()
    projects = {experiment.root.parent for experiment in experiments}
    if len(projects) > 1:
        names = ", ".join(sorted(project.name for project in projects))
        message = f"these experiments are of several projects ({names}): say where to write, with --output DIR"
        raise ConfigError(message)
    if experiments_folder(experiments[0], root) is None:
        message = f"{experiments[0].root}: is not below {root}: give --experiments-dir, or --output DIR to write to"
        raise ConfigError(message)
    return projects.pop()


def export_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_arguments(parser)
    parser.add_argument("target", metavar="DIR", type=Path, help="new folder to write, or an earlier export to replace")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the last that is evaluated)")
    parser.add_argument("--inner-lr", type=float, help="which training, where there are several inner learning rates")
    parser.add_argument("--seed", type=int, help="which training, where there are several seeds")
    parser.add_argument("--training", metavar="NAME", help="which training, by the name of its folder of checkpoints")
    parser.add_argument("--half", action="store_true", help="round the weights to float16: half the size")


def export(options: argparse.Namespace) -> None:
    experiment = find_experiment(options)
    config = load_experiment_config(experiment.config_file).config
    training = _choose(config, options.inner_lr, options.seed, options.training)
    step = _step(experiment, config, training, options.step)
    from anml.checkpoints.export import export_model  # torch is imported after mistakes are told.

    # If the target is a link, the folder that it leads to is written, and the link stays.
    missing = export_model(experiment, config, step, training, options.target.expanduser().resolve(), options.half)
    print_notices([f"the card says that results are missing: {sentence}" for sentence in missing])
    print(f"Written: {options.target}")
    sizes = [max(flavor.classes) for flavor in config.eval.values()]
    print(f"Evaluate it: python -m anml evaluate -m {options.target}" + (f" --classes {max(sizes)}" if sizes else ""))


def _step(experiment: Experiment, config: TrainConfig, training: TrainingId, wanted: int | None) -> int:
    """Return the step asked for, or the last that is evaluated. Raises ConfigError with the steps there are."""
    from anml.checkpoints import steps_saved

    step = config.checkpoint_steps[-1] if wanted is None else wanted
    folder = experiment.checkpoint(step, training.tag)
    if (folder / "model.json").is_file():
        return step
    steps = ", ".join(map(str, steps_saved(folder.parent)))
    hint = f"give --step, one of {steps}" if steps else "training has not come to any"
    message = f"{folder}: no checkpoint here; {hint}"
    raise ConfigError(message)


def _choose(config: TrainConfig, inner_lr: float | None, seed: int | None, tag: str | None) -> TrainingId:
    """Return the training asked for. Raises ConfigError, also where the only training is another."""
    varied = {key for training in config.trainings for key, _ in training.varied}
    asked = (("--inner-lr", inner_lr, "inner_lr", config.inner_lr), ("--seed", seed, "seed", config.seed))
    for flag, wanted, key, only in asked:
        if wanted is not None and key not in varied and wanted != only:
            message = f"{flag} {wanted}: this experiment has no such training; all of it is with {only}"
            raise ConfigError(message)
    return config.training_id(inner_lr, seed, tag)


def archive_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_arguments(parser)
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="what to write (default: GROUP.tar.gz)")
    parser.add_argument("--all-models", action="store_true", help="of every evaluated checkpoint, not of the last")


def archive(options: argparse.Namespace) -> None:
    from anml.jobs.status import is_report_stale, overall_state
    from anml.report.archive import CHECKSUMS, archive_mode, write_archive

    experiment = find_experiment(options)
    target = options.file or Path(f"{experiment.group}.tar.gz")
    archive_mode(target)
    check_output("FILE", target)
    if (state := overall_state(jobs := read_jobs(experiment))) != "done":
        print_notices([f"the experiment is not complete: {state}"])
    elif is_report_stale(experiment, jobs):
        print_notices(["the report is older than its jobs: `report` writes it again"])
    count = write_archive(experiment, target, options.all_models)
    print(f"Written: {target} ({count} files, {target.stat().st_size / 1e6:.1f} MB)")
    print(f"To check it: tar xf {shlex.quote(str(target))} && cd {shlex.quote(experiment.group)} && "
          f"sha256sum --check --quiet {CHECKSUMS}")  # fmt: skip


def sync(options: argparse.Namespace) -> int:
    from anml.tracking.offline import recorded_files, sync

    experiment = find_experiment(options)
    if not recorded_files(experiment.wandb_dir / "wandb"):
        print("No offline runs here.")
        return EXIT_DONE
    return EXIT_DONE if sync(experiment) else EXIT_FAILED
