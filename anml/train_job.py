"""The training job: one segment of one training, up to a step whose checkpoint is evaluated."""

from typing import Any

import torch

from anml.atomic import read_json, write_json
from anml.config.profile import Device, WandbMode
from anml.config.training import TrainConfig
from anml.disk import check_folder
from anml.experiment import Experiment
from anml.job import JobContext
from anml.machine import describe_machine, prepare_device
from anml.tracking import Tracker
from anml.train import Training


def train_segment(
    context: JobContext,
    config: TrainConfig,
    experiment: Experiment,
    seed: int | None,
    until: int | None,
    device: Device,
    wandb_mode: WandbMode,
    min_free_gb: float = 0.0,
) -> bool:
    """Train to step `until` (default: the end). `seed` is None unless the experiment trains several.

    Returns False when stopped before, with a checkpoint of where it stopped.
    """
    check_folder(experiment.root, min_free_gb)
    compute_on = prepare_device(device, config.device)
    until = config.total_steps if until is None else until
    training = Training(
        config,
        config.seed if seed is None else seed,
        experiment.checkpoints(seed),
        experiment.metrics(seed),
        compute_on,
    )
    _record_machine(experiment, compute_on)
    _say(f"training on {compute_on}, {training.updater.note}; steps {training.completed} to {until}")
    if training.completed >= until:
        return True
    name = "train" if seed is None else f"train-seed-{seed}"
    tracker = Tracker(experiment, config, name, "train", wandb_mode)
    training.on_log = lambda line: _log(tracker, line)
    finished = False
    try:
        finished = training.run(until, context.stop, lambda done: context.progress(done, until, "steps"))
    finally:
        tracker.finish(exit_code=0 if finished else 1)
    return finished


def _record_machine(experiment: Experiment, device: torch.device) -> None:
    """Add the machine that trains to environment.json."""
    known = read_json(experiment.environment_file) or {}
    write_json(experiment.environment_file, known | {"training_machine": describe_machine(device)})


def _log(tracker: Tracker, line: dict[str, Any]) -> None:
    tracker.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])
    _say("  ".join(f"{key} {value:.4g}" for key, value in line.items()))


def _say(text: str) -> None:
    print(text, flush=True)
