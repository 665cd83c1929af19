"""What is taken out of one experiment: `report` (and the `report-job` that ends every plan), `export`, `sync`."""

import argparse
import subprocess
import sys
from pathlib import Path

from anml.cli.arguments import EXIT_FAILED, add_address_arguments, add_job_arguments, find_experiment, print_notices
from anml.config.load import load_experiment_config
from anml.config.training import TrainConfig, TrainingId
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.job import JobContext, check_folder, run_job
from anml.jobs.launch import experiments_dir
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


def report_job(options: argparse.Namespace) -> int:
    """Write the report and send the best accuracies to W&B."""
    experiment = Experiment(Path(options.run_dir))

    def work(context: JobContext) -> bool:
        from anml.report.index import write_indexes
        from anml.report.write import write_report

        check_folder(experiment.root, options.min_free_gb)
        context.progress(0, 1, "reports")
        summary = write_report(experiment)
        print_notices(write_indexes(experiment))
        config = load_experiment_config(experiment.config_file).config
        tracker = Tracker(experiment, config, "report", "report", options.wandb)
        tracker.summary(summary.best_accuracies())
        tracker.finish()
        context.progress(1, 1, "reports")
        return True

    return run_job(experiment, options.job, None, work)


def export_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_arguments(parser)
    parser.add_argument("target", metavar="DIR", type=Path, help="new folder to write, or an earlier export to replace")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the last that is evaluated)")
    parser.add_argument("--inner-lr", type=float, help="which training, where there are several inner learning rates")
    parser.add_argument("--seed", type=int, help="which training, where there are several seeds")
    parser.add_argument("--half", action="store_true", help="round the weights to float16: half the size")


def export(options: argparse.Namespace) -> None:
    experiment = find_experiment(options)
    config = load_experiment_config(experiment.config_file).config
    training = _choose(config, options.inner_lr, options.seed)
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


def _choose(config: TrainConfig, inner_lr: float | None, seed: int | None) -> TrainingId:
    """Return the training asked for. Raises ConfigError, also where the only training is another."""
    asked = (("--inner-lr", inner_lr, config.inner_lrs, config.inner_lr), ("--seed", seed, config.seeds, config.seed))
    for flag, wanted, varied, only in asked:
        if wanted is not None and not varied and wanted != only:
            message = f"{flag} {wanted}: this experiment has no such training; all of it is with {only}"
            raise ConfigError(message)
    return config.training_id(inner_lr, seed)


def sync(options: argparse.Namespace) -> int | None:
    runs = sorted(str(path) for path in (find_experiment(options).wandb_dir / "wandb").glob("offline-run-*"))
    if not runs:
        print("No offline runs here.")
        return None
    # Without --yes and paths, wandb asks questions, or takes the runs of the current folder.
    result = subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", *runs], check=False)
    return EXIT_FAILED if result.returncode else None
