"""The Python interface: `anml.load`, `anml.launch`, `anml.evaluate`. Commands call the same functions.

Mistakes raise what `anml.errors` defines: ConfigError for wrong input (`problems` has all of them), and others.
"""

import copy
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anml.cli.arguments import config_file, find_experiments
from anml.cli.evaluate import checkpoint_paths
from anml.cli.launch import LaunchOptions, decide, start
from anml.config.evaluation import EvalConfig
from anml.config.load import dump_config, load_eval_configs, load_experiment_config
from anml.config.profile import Device, WandbMode
from anml.config.training import TrainConfig
from anml.config.yaml import Source, dump_yaml, read_value, source_of
from anml.errors import ConfigError, JobError
from anml.experiment import Experiment
from anml.jobs.launch import experiments_dir as folder_of_experiments
from anml.jobs.status import overall_state, read_jobs

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from anml.evaluate.sweep import LoadedModel
    from anml.models.meta_model import MetaModel

# What a config may be given as: a file, the name of a shipped one, keys with values, or the config of an experiment.
Config = str | Path | Mapping[str, Any] | TrainConfig


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment. Everything is read when it is asked for, so that it may still run.

    folder: the paths of its files.
    """

    folder: Experiment

    @property
    def config(self) -> TrainConfig:
        """All settings; `config.eval["olft"].lr` are the learning rates of a flavor."""
        return load_experiment_config(self.folder.config_file).config

    @property
    def state(self) -> str:
        """What became of its jobs, in a few words: `done`, `2 of 5 jobs to go`."""
        return overall_state(read_jobs(self.folder))

    @property
    def results(self) -> "DataFrame":
        """Every scoring of every trajectory: the columns of results/*.csv, and one for each key that varies.

        Accuracies (`test_acc`, `train_acc`, ...) are fractions: means over the classes learned so far.
        """
        from anml.report.tables import tidy
        from anml.report.write import read_report

        report = read_report(self.folder)
        return tidy(report.rows, report.config)

    @property
    def summary(self) -> "DataFrame":
        """The best learning rate of every sweep with its accuracy: the table `summary.csv` of the report."""
        from anml.report.tables import as_frame, with_varied
        from anml.report.write import read_report

        report = read_report(self.folder)
        return with_varied(as_frame(report.summary), report.config)

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of all checkpoints, training by training, each in order of steps."""
        return sorted(card.parent for card in self.folder.checkpoints().rglob("model.json"))

    def model(self, step: int | None = None, training: str = "") -> "MetaModel":
        """Return a trained model, on the CPU; its `card` says what it is. It maps images [n, C, H, W] to logits.

        step: which checkpoint; None: the last that is evaluated. training: of several, the name of the folder below
        checkpoints/, as `seed-1`. Raises ConfigError for a training, and CheckpointError for a step, that is not there.
        """
        from anml.checkpoints import load_model

        config = self.config
        tag = config.training_id(tag=training or None).tag
        model, model.card = load_model(
            self.folder.checkpoint(config.checkpoint_steps[-1] if step is None else step, tag)
        )
        return model

    def figure(self, name: str = "accuracy-vs-classes") -> "Figure":
        """Return a figure of the report: `accuracy-vs-classes`, `accuracy-vs-lr`, `confusions`, `training`, ...

        Raises ConfigError for another name, and where there is nothing to draw yet.
        """
        from anml.report.figures import read_training
        from anml.report.write import FIGURES, draw_figure, read_report

        if name not in FIGURES:
            message = f"no figure {name!r}; there are: {', '.join(FIGURES)}"
            raise ConfigError(message)
        report = read_report(self.folder)
        figure = draw_figure(report, name, read_training(self.folder, report.config.trainings if report.config else ()))
        if figure is None:
            message = f"{name}: there is nothing to draw yet ({self.state})"
            raise ConfigError(message)
        return figure


def load(address: str | Path, experiments_dir: str | None = None) -> LoadedExperiment:
    """Return the experiment PROJECT/GROUP, or that in a folder.

    experiments_dir: where experiments are; None: ANML_EXPERIMENTS, else the usual folder. Raises ConfigError with those
    that exist.
    """
    return LoadedExperiment(find_experiments(folder_of_experiments(experiments_dir), str(address))[0])


def launch(
    config: Config, project: str | None = None, group: str | None = None, cluster: str | None = None,
    experiments_dir: str | None = None, wandb: WandbMode | None = None, smoke_test: bool = False,
    sbatch_options: Sequence[str] = (), **settings: Any,
) -> LoadedExperiment:  # fmt: skip
    """Launch an experiment as `anml launch` does, and return it: finished where jobs run here, else submitted.

    cluster: a profile; `local` runs the jobs on this machine. settings: keys of the config with other values, as
    `inner_lr=0.05`; of nested ones `**{"eval.olft.runs": 3}`. sbatch_options: `["--mem=64G"]`.
    Raises ConfigError with every problem, before anything is created, and JobError where jobs here do not succeed.
    """
    words = {"project": project, "group": group, "cluster": cluster, **settings}
    given = "".join(f", {key}={value!r}" for key, value in words.items() if value is not None)
    options = LaunchOptions(
        config=_read(config), overrides=_overrides(settings), project=project, group=group, cluster=cluster,
        experiments_dir=experiments_dir, wandb=wandb, smoke_test=smoke_test, sbatch_options=list(sbatch_options),
        command_line=["-c", f"import anml; anml.launch({str(config)!r}{given})"],
    )  # fmt: skip
    loaded, decided = decide(options)
    code = start(loaded, decided, folder_of_experiments(experiments_dir))
    if code:
        message = f"{decided.experiment.root}: {overall_state(read_jobs(decided.experiment))}; see `anml status`"
        raise JobError(message)
    return LoadedExperiment(decided.experiment)


def evaluate(
    model: "str | Path | MetaModel | Sequence[str | Path]", config: Config | None = None, device: Device = "auto",
    **settings: Any,
) -> "DataFrame":  # fmt: skip
    """Evaluate a model on classes that it has never seen, as `anml evaluate` does, and return its results.

    model: a checkpoint's folder, a `.pth` of higherANML, several of them, or a model that `LoadedExperiment.model` gave
    (its weights may have changed since; it stays as it is). config: of an evaluation; None: the defaults. settings:
    keys with other values, as `classes=10, lr=[0.001, 0.01]`.
    Returns a row for each scoring, with the columns of results/*.csv. Raises ConfigError, CheckpointError, DataError.
    """
    read = None if config is None else _read(config)
    configs = [loaded.config for loaded in load_eval_configs(read, _overrides(settings))]
    from anml.evaluate.sweep import run_sweep, sweep_trajectories
    from anml.machine import prepare_device
    from anml.report.tables import tidy

    compute_on = prepare_device("auto", device, configs[0].deterministic)
    models = [loaded for each in configs for loaded in _models(model, each, compute_on)]
    sweeps = [run_sweep(loaded, "eval", sweep_trajectories(loaded.config)) for loaded in models]
    return tidy([row for sweep in sweeps for result in sweep for row in result.rows])


def _models(model: Any, config: EvalConfig, device: "torch.device") -> "list[LoadedModel]":
    """Return the models to evaluate, each with its images."""
    from anml.evaluate.by_hand import load_models, prepare_models
    from anml.models.meta_model import MetaModel

    if not isinstance(model, MetaModel):
        several = isinstance(model, Sequence) and not isinstance(model, str)
        return load_models(config, checkpoint_paths([str(path) for path in (model if several else [model])]), device)
    if model.card is None:
        message = "this model comes from no checkpoint; take one that `anml.load(...).model()` gives"
        raise ConfigError(message)
    return prepare_models(config, [("model", copy.deepcopy(model).to(device), model.card)], device)


def _read(config: Config) -> Path | Source:
    """Return the file of a config, or the config that a program has made, as if it were read."""
    if isinstance(config, TrainConfig):
        return source_of(read_value(dump_config(config), "config"), "config")
    if isinstance(config, Mapping):
        return source_of(dict(config), "config")
    try:
        return config_file(str(config))
    except ArgumentTypeError as error:
        raise ConfigError(str(error)) from None


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={dump_yaml(source_of(value, key).data)}" for key, value in settings.items()]
