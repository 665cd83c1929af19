"""The training job: one segment of one training, up to a step whose checkpoint is evaluated."""

from typing import Any

import torch

from anml.atomic import read_json, write_json
from anml.config.profile import Device, WandbMode
from anml.config.training import TrainConfig, TrainingId
from anml.experiment import Experiment
from anml.jobs.job import JobContext, check_folder
from anml.machine import describe_machine, determinism, peak_memory, prepare_device
from anml.tracking import Tracker
from anml.train.loop import Lane, Training, TrainingTogether
from anml.train.run import TrainingRun


def train_segment(
    context: JobContext,
    config: TrainConfig,
    experiment: Experiment,
    one: TrainingId,
    until: int | None,
    device: Device,
    wandb_mode: WandbMode,
    min_free_gb: float = 0.0,
) -> bool:
    """Train to step `until` (default: the end). `one` says which of the experiment's trainings, if not all together.

    Returns False when stopped before, with a checkpoint of where it stopped.
    """
    check_folder(experiment.root, min_free_gb)
    compute_on = prepare_device(device, config.device, config.deterministic)
    until = config.total_steps if until is None else until
    training = _make_training(config, experiment, one, compute_on)
    _record_machine(experiment, compute_on)
    notes = _Notes(f"training on {compute_on}{determinism(compute_on)}, ", training)
    _say(f"{notes.latest}; steps {training.completed} to {until}")
    if training.completed >= until:
        return True
    ran = config.trainings if config.train_together else [one]
    trackers = [
        _track(run, training.tag, experiment, wandb_mode, notes, with_tag=len(ran) > 1)
        for run, training in zip(training.runs, ran, strict=True)
    ]
    finished = False
    try:
        finished = training.run(until, context.stop, lambda done: context.progress(done, until, "steps"))
    finally:
        for tracker in trackers:
            tracker.finish(exit_code=0 if finished else 1)
    _say(peak_memory(compute_on))
    return finished


def _make_training(
    config: TrainConfig, experiment: Experiment, one: TrainingId, device: torch.device
) -> Training | TrainingTogether:
    if config.train_together:
        lanes = [
            Lane(config.for_training(each), experiment.checkpoints(each.tag), experiment.metrics(each.tag))
            for each in config.trainings
        ]
        return TrainingTogether(config, lanes, device)
    alone = config.for_training(one)
    return Training(alone, alone.seed, experiment.checkpoints(one.tag), experiment.metrics(one.tag), device)


class _Notes:
    """Tells what trains, and again when that changes: an engine may fall back at its first episodes."""

    def __init__(self, prefix: str, training: Training | TrainingTogether) -> None:
        self.prefix, self.training = prefix, training
        self.latest = prefix + training.note

    def say_if_new(self) -> None:
        """Print the note unless it was the last to be printed."""
        note = self.prefix + self.training.note
        if note != self.latest:
            self.latest = note
            _say(note)


def _track(
    run: TrainingRun, tag: str, experiment: Experiment, mode: WandbMode, notes: _Notes, with_tag: bool
) -> Tracker:
    """Let the lines of a run's log go to its W&B run and to the job's own log."""
    tracker = Tracker(experiment, run.config, f"train-{tag}" if tag else "train", "train", mode)

    def log(line: dict[str, Any]) -> None:
        notes.say_if_new()
        tracker.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])
        start = f"{tag}  " if with_tag else ""
        _say(start + "  ".join(f"{key} {value if key == 'step' else f'{value:.4g}'}" for key, value in line.items()))

    run.on_log = log
    return tracker


def _record_machine(experiment: Experiment, device: torch.device) -> None:
    """Add the machine that trains to environment.json."""
    known = read_json(experiment.environment_file) or {}
    write_json(experiment.environment_file, known | {"training_machine": describe_machine(device)})


def _say(text: str) -> None:
    print(text, flush=True)
