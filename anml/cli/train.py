"""`train_anml.py`: one training job, planned or by hand."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from anml.atomic import write_text
from anml.cli.arguments import (
    add_common_arguments,
    add_data_path_argument,
    add_job_arguments,
    config_file,
    positive,
    print_notices,
)
from anml.cli.check_config import find_problems
from anml.config.binding import located
from anml.config.load import dump_config, load_experiment_config, load_train_config
from anml.config.training import TrainConfig, TrainingId
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.job import JobContext, run_job
from anml.jobs.launch import experiments_dir


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(
        prog="train_anml.py",
        description="Run one training, or continue it from its last checkpoint.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", metavar="PATH", type=config_file, help="training config")
    parser.add_argument("--run-dir", metavar="DIR", help="folder of the run (default: experiments/by-hand/<model>)")
    add_data_path_argument(parser)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], help="where to compute")
    parser.add_argument("--inner-lr", type=float, help="which inner learning rate to train with")
    parser.add_argument("--seed", type=int, help="which seed to train")
    parser.add_argument(
        "--until-step", metavar="N", type=positive, help="stop after this step (default: train to the end)"
    )
    parser.add_argument("--wandb", choices=["online", "offline", "disabled"], default="disabled", help="W&B mode")
    add_common_arguments(parser)
    add_job_arguments(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Train."""
    options = make_parser().parse_args(arguments)
    config, experiment = _config_and_folder(options)
    one = TrainingId() if config.train_together else config.training_id(options.inner_lr, options.seed)

    def work(context: JobContext) -> bool:
        from anml.train.job import train_segment  # torch: after --help and config errors.

        return train_segment(
            context, config, experiment, one, options.until_step,
            options.cluster_device, options.wandb, options.min_free_gb,
        )  # fmt: skip

    code = run_job(experiment, options.job, None, work, options.max_requeues)
    if options.job is None and code == 0:
        print(f"Checkpoints: {experiment.checkpoints(one.tag)}")
    return code


def _config_and_folder(options: argparse.Namespace) -> tuple[TrainConfig, Experiment]:
    if options.config is None and options.run_dir is None:
        message = "give a config (-c CONFIG), or the folder of a run to continue (--run-dir DIR)"
        raise ConfigError(message)
    run_dir = Path(options.run_dir).expanduser().resolve() if options.run_dir else None
    path = options.config or run_dir / "config.yml"  # type: ignore[operator]
    flags = {"device": options.device, "data_path": options.data_path}
    load = load_train_config if options.config else load_experiment_config
    config, notices, source = load(path, options.overrides, flags)
    _check_choice(config, TrainingId(options.inner_lr, options.seed))
    if options.seed is not None and not config.seeds:
        config = config.model_copy(update={"seed": options.seed})
    print_notices(notices)
    if run_dir is None:
        run_dir = experiments_dir(None) / (config.project or "by-hand") / (config.group or config.display_name)
    experiment = Experiment(run_dir)
    if options.config is not None:
        problems = located(source, find_problems(config))
        if problems:
            raise ConfigError(problems)
        _claim(experiment, config)
    return config, experiment


def _check_choice(config: TrainConfig, given: TrainingId) -> None:
    """Raise ConfigError unless the arguments name the training, where there are several."""
    if config.train_together and given != TrainingId():
        message = f"{' '.join(given.flags())}: this config does its trainings together (train_together); leave that out"
        raise ConfigError(message)
    if given.inner_lr is not None and not config.inner_lrs:
        message = f"--inner-lr {given.inner_lr}: there are no inner_lrs to choose from; use --set inner_lr=NUMBER"
        raise ConfigError(message)
    if not config.train_together:
        config.training_id(*given)


def _claim(experiment: Experiment, config: TrainConfig) -> None:
    """Write the config of a run by hand, or make sure that the folder holds the same run. Raises ConfigError."""
    text = dump_config(config)
    if not experiment.config_file.is_file():
        # A training clears old checkpoints away and cuts its log: here these would be somebody else's.
        taken = [folder for folder in (experiment.checkpoints(), experiment.metrics().parent) if folder.exists()]
        if taken:
            message = (
                f"{taken[0]}: belongs to something else (there is no config.yml); choose another with --run-dir DIR"
            )
            raise ConfigError(message)
    elif experiment.config_file.read_text(encoding="utf-8") != text:
        message = f"{experiment.root}: holds a run with another config; choose another with --run-dir DIR"
        raise ConfigError(message)
    write_text(experiment.config_file, text)
