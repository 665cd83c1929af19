"""`train`: one training job, planned or by hand."""

import argparse
from pathlib import Path

from anml.atomic import write_text
from anml.cli.arguments import print_notices
from anml.cli.check_config import find_problems
from anml.config.binding import located
from anml.config.load import dump_config, load_experiment_config, load_train_config
from anml.config.training import TrainConfig
from anml.config.vary import TrainingId
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.jobs.job import JobContext, run_job
from anml.jobs.launch import experiments_dir


def train(options: argparse.Namespace) -> int:
    config, experiment, training = _prepare(options)

    def work(context: JobContext) -> bool:
        from anml.train.job import train_segment  # torch is imported after errors of the config are told.

        return train_segment(
            context, config, experiment, training, options.until_step,
            options.cluster_device, options.wandb, options.min_free_gb,
        )  # fmt: skip

    code = run_job(experiment, options.job, None, work, options.max_requeues)
    if options.job is None and code == 0:
        print(f"Checkpoints: {experiment.checkpoints(training.tag)}")
    return code


def _prepare(options: argparse.Namespace) -> tuple[TrainConfig, Experiment, TrainingId]:
    if options.config is None and options.run_dir is None:
        message = "give a config (-c CONFIG), or the folder of a run to continue (--run-dir DIR)"
        raise ConfigError(message)
    run_dir = Path(options.run_dir).expanduser().resolve() if options.run_dir else None
    path = options.config or run_dir / "config.yml"  # type: ignore[operator]
    load = load_train_config if options.config else load_experiment_config
    flags = {"device": options.device, "data_path": options.data_path}
    config, notices, source = load(path, options.overrides, flags)
    training = _choose(config, options.inner_lr, options.seed, options.training)
    if options.seed is not None and not _varies(config, "seed"):
        config = config.model_copy(update={"seed": options.seed})
    print_notices(notices)
    if run_dir is None:
        run_dir = experiments_dir(None) / (config.project or "by-hand") / (config.group or config.display_name)
    experiment = Experiment(run_dir)
    if options.config is not None:
        of_data: list[str] = []
        if problems := located(source, find_problems(config, of_data)):
            raise ConfigError(problems)
        print_notices(of_data)
        _claim(experiment, config)
    return config, experiment, training


def _choose(config: TrainConfig, inner_lr: float | None, seed: int | None, tag: str | None) -> TrainingId:
    """Return the training, or the trainings together, that the arguments name. Raises ConfigError."""
    given = [f"--inner-lr {inner_lr}"] * (inner_lr is not None) + [f"--seed {seed}"] * (seed is not None)
    if config.train_together and given:
        message = f"{' '.join(given)}: this config does its trainings together (train_together); leave that out"
        raise ConfigError(message)
    if inner_lr is not None and not _varies(config, "inner_lr"):
        message = f"--inner-lr {inner_lr}: there are no inner_lrs to choose from; use --set inner_lr=NUMBER"
        raise ConfigError(message)
    if not config.train_together:
        return config.training_id(inner_lr, seed, tag)
    groups = [group for group in config.training_groups if tag in (None, group.tag)]
    if len(groups) != 1:
        message = f"say which trainings: --training {' | '.join(group.tag for group in config.training_groups)}"
        raise ConfigError(message)
    return groups[0]


def _varies(config: TrainConfig, key: str) -> bool:
    return any(key in dict(training.varied) for training in config.trainings)


def _claim(experiment: Experiment, config: TrainConfig) -> None:
    """Write the config of a run by hand. Raises ConfigError where the folder holds another run, or something else."""
    text = dump_config(config)
    if not experiment.config_file.is_file():
        # A training deletes old checkpoints and cuts its log: in this folder they would belong to something else.
        for folder in (experiment.checkpoints(), experiment.metrics().parent):
            if folder.exists():
                message = f"{folder}: is of something else (no config.yml); choose another folder with --run-dir DIR"
                raise ConfigError(message)
    elif experiment.config_file.read_text(encoding="utf-8") != text:
        message = f"{experiment.root}: holds a run with another config; choose another with --run-dir DIR"
        raise ConfigError(message)
    write_text(experiment.config_file, text)
