"""The training job: one segment of one training (or of all together), up to a step whose checkpoint is evaluated."""

import json
from collections.abc import Sequence
from typing import Any

from anml.atomic import read_json, wait_until, write_json
from anml.checkpoints import is_complete
from anml.config.profile import Device, WandbMode
from anml.config.training import TrainConfig
from anml.config.vary import TrainingId
from anml.experiment import Experiment
from anml.jobs.job import JobContext, check_folder
from anml.machine import describe_machine, determinism, peak_memory, prepare_device, set_precision
from anml.tracking import Tracker
from anml.train.loop import Training
from anml.train.run import RunSpec, TrainingRun, step_folder

UNIT = "steps"


def train_segment(
    context: JobContext,
    config: TrainConfig,
    experiment: Experiment,
    training_id: TrainingId,
    until: int | None,
    device: Device,
    wandb_mode: WandbMode,
    min_free_gb: float = 0.0,
) -> bool:
    """Train to step `until` (default: the end). training_id: which of `config.training_groups`.

    Returns False when stopped before, with a checkpoint of where it stopped.
    """
    check_folder(experiment.root, min_free_gb)
    compute_on = prepare_device(device, config.device, config.deterministic)
    precision = set_precision(compute_on, config.precision)
    until = config.total_steps if until is None else until
    ids = config.training_groups[training_id]
    specs = [
        RunSpec(config.for_training(each), experiment.checkpoints(each.tag), experiment.metrics(each.tag))
        for each in ids
    ]
    _wait_for_earlier_work(context, specs, until)
    training = Training(specs, compute_on)
    environment = read_json(experiment.environment_file)
    write_json(experiment.environment_file, environment | {"training_machine": describe_machine(compute_on)})
    notes = _Notes(f"training on {compute_on}{determinism(compute_on)}{precision}, ", training)
    _say(f"{notes.latest}; steps {training.completed} to {until}")
    if missing := training.runs[0].meter.missing:
        _say(missing)
    if training.completed >= until:
        return True
    trackers = [
        _track(run, each.tag, experiment, wandb_mode, notes, with_tag=len(ids) > 1)
        for run, each in zip(training.runs, ids, strict=True)
    ]
    finished = False
    try:
        finished = training.run(until, context.stop, lambda done: context.progress(done, until, UNIT))
    finally:
        for tracker in trackers:
            tracker.finish(exit_code=0 if finished else 1)
    notes.say_if_new()
    _say(peak_memory(compute_on))
    return finished


def _wait_for_earlier_work(context: JobContext, specs: Sequence[RunSpec], until: int) -> None:
    """Wait for the checkpoints that the segment before, or an earlier attempt of this job, has kept on another node."""
    if context.status is None:  # Started by hand: there is no segment before.
        return
    before = context.status.before
    was_saved = before.state in ("requeued", "interrupted") and before.unit == UNIT
    earlier = [step for step in specs[0].config.checkpoint_steps if step < until]
    step = max([*earlier[-1:], int(before.done) if was_saved else 0], default=0)
    for spec in specs if step else ():
        folder = step_folder(spec.checkpoints, step)
        if not wait_until(lambda folder=folder: is_complete(folder), spec.checkpoints):
            _say(f"{folder}: no intact checkpoint: going on from the last one before it")


class _Notes:
    """Tells what trains, and again when that changes: an engine may fall back at its first episodes."""

    def __init__(self, prefix: str, training: Training) -> None:
        self.prefix, self.training = prefix, training
        self.latest = prefix + training.note

    def say_if_new(self) -> None:
        note = self.prefix + self.training.note
        if note != self.latest:
            self.latest = note
            _say(note)


def _track(
    run: TrainingRun, tag: str, experiment: Experiment, mode: WandbMode, notes: _Notes, with_tag: bool
) -> Tracker:
    """Send the lines of a run's log to its W&B run and to the job's own log."""
    tracker = Tracker(experiment, run.config, f"train-{tag}" if tag else "train", "train", mode)
    tracker.catch_up(map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines()))

    def log(line: dict[str, Any]) -> None:
        notes.say_if_new()
        tracker.log({key: value for key, value in line.items() if key != "step"}, step=line["step"])
        start = f"{tag}  " if with_tag else ""
        texts = {key: value if isinstance(value, int) else f"{value:.4g}" for key, value in line.items()}
        _say(start + "  ".join(f"{key} {text}" for key, text in texts.items()))

    run.on_log = log
    return tracker


def _say(text: str) -> None:
    print(text, flush=True)
