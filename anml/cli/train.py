"""`train`: one training job, planned or by hand."""

import argparse
from pathlib import Path

from anml.atomic import write_text
from anml.cli.arguments import print_notices
from anml.cli.check_config import find_problems
from anml.config.binding import located
from anml.config.load import dump_config, load_experiment_config, load_train_config
from anml.config.training import TrainConfig, TrainingId
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
    training = _choose(config, TrainingId(options.inner_lr, options.seed))
    if options.seed is not None and not config.seeds:
        config = config.model_copy(update={"seed": options.seed})
    print_notices(notices)
    if run_dir is None:
        run_dir = experiments_dir(None) / (config.project or "by-hand") / (config.group or config.display_name)
    experiment = Experiment(run_dir)
    if options.config is not None:
        if problems := located(source, find_problems(config)):
            raise ConfigError(problems)
        _claim(experiment, config)
    return config, experiment, training


def _choose(config: TrainConfig, given: TrainingId) -> TrainingId:
    """Return the training of the config that the arguments name. Raises ConfigError."""
    if config.train_together and given != TrainingId():
        message = f"{' '.join(given.flags())}: this config does its trainings together (train_together); leave that out"
        raise ConfigError(message)
    if given.inner_lr is not None and not config.inner_lrs:
        message = f"--inner-lr {given.inner_lr}: there are no inner_lrs to choose from; use --set inner_lr=NUMBER"
        raise ConfigError(message)
    return given if config.train_together else config.training_id(*given)


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
