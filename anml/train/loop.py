"""The training loop: draw, step, log, checkpoint. Resumes exactly from any checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode, draw_episode
from anml.errors import JobError
from anml.machine import clock
from anml.meta import make_engine, make_lanes, uses_graph
from anml.meta.engine import EpisodeOutcome
from anml.meta.static_update import GraphPlayer, StaticUpdate
from anml.meta.step import MetaStep, OuterStep
from anml.models.meta_model import MetaModel, select_names
from anml.train.iid import IidStep
from anml.train.run import TrainingRun, last_good_step, training_data

Stop = Callable[[], bool]
Progress = Callable[[int], None]


class Updater(Protocol):
    """One way of training: updates the model once per step."""

    @property
    def note(self) -> str:
        """What trains, and why it does."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What updates the model; its state is part of a checkpoint."""
        ...

    def step(self, index: int) -> EpisodeOutcome:
        """Update the model with the data of step `index` (from 0)."""
        ...


class EpisodeUpdater:
    """Meta-training and its first-order relatives: one step is one episode."""

    def __init__(self, config: TrainConfig, model: MetaModel, data: ClassImages, seed: int) -> None:
        self.config, self.data, self.seed = config, data, seed
        self.engine, self.why = make_engine(config, model, select_names(model, config.inner_params))
        self.meta = MetaStep(config, model, self.engine, seed)
        self.optimizer = self.meta.optimizer

    @property
    def note(self) -> str:
        """The engine, why it was chosen, and what came of it."""
        return ", ".join(filter(None, (f"engine {self.engine.name}", self.why, self.engine.note)))

    def step(self, index: int) -> EpisodeOutcome:
        """Draw and run episode `index`."""
        return self.meta.update(draw_episode(self.data, self.config, self.seed, index), index)


class GraphUpdater(EpisodeUpdater):
    """Meta-training on a GPU with one graph for each update."""

    def __init__(self, config: TrainConfig, model: MetaModel, data: ClassImages, seed: int) -> None:
        super().__init__(config, model, data, seed)
        self.player = GraphPlayer([self.optimizer])
        self.meta.keep_rate_on_device()
        self.static = StaticUpdate(config, [self.meta], self._run, data, self.player)

    @property
    def note(self) -> str:
        """The engine in the graph, and what came of capturing it."""
        return ", ".join(filter(None, (super().note, self.player.note)))

    def step(self, index: int) -> EpisodeOutcome:
        """Draw and run episode `index`; the outcome has no gradients."""
        return self.static.step(index)[0]

    def _run(self, episodes: Sequence[Episode]) -> list[EpisodeOutcome]:
        return [self.engine.run(episode) for episode in episodes]


class Training:
    """One training of one seed, from its last good checkpoint on.

    checkpoints: folder of step-NNNNNN folders. metrics: JSON lines file. on_log receives each logged line.
    """

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        checkpoints: Path,
        metrics: Path,
        device: torch.device,
        on_log: Callable[[dict[str, Any]], None] = lambda line: None,
    ) -> None:
        data, self.validation = training_data(config, device)
        start = last_good_step(checkpoints)
        self.state = TrainingRun(config, seed, checkpoints, metrics, device, self.validation, start)
        self.state.on_log = on_log
        self.model = self.state.model
        self.updater = _make_updater(config, self.model, data, seed)
        self.state.restore(self.updater.optimizer)

    @property
    def completed(self) -> int:
        """Steps done."""
        return self.state.completed

    @property
    def note(self) -> str:
        """What trains, and why it does."""
        return self.updater.note

    @property
    def runs(self) -> list[TrainingRun]:
        """What is trained: one seed."""
        return [self.state]

    def run(self, until: int, stop: Stop, progress: Progress) -> bool:
        """Train up to step `until` and keep a checkpoint of it. Returns False when stopped before (work is saved).

        Raises JobError where training diverges.
        """
        return train_until(self.runs, lambda index: [self.updater.step(index)], until, stop, progress)


def train_until(
    runs: Sequence[TrainingRun],
    step: Callable[[int], Sequence[EpisodeOutcome]],
    until: int,
    stop: Stop,
    progress: Progress,
) -> bool:
    """Train one run, or several that keep step with each other. Returns False when stopped before (work is saved)."""
    first = runs[0]
    started, since = clock(first.device), first.completed
    while first.completed < until:
        if stop():
            for run in runs:
                run.save()
            return False
        for run, outcome in zip(runs, step(first.completed), strict=True):
            run.took(outcome)
        if first.completed % first.config.log_freq == 0 or first.completed == until:
            speed = (first.completed - since) / (clock(first.device) - started)
            for run in runs:
                run.log(speed)
            started, since = clock(first.device), first.completed
        if first.completed % first.config.save_freq == 0 or first.completed == until:
            for run in runs:
                run.save()
        progress(first.completed)
    return True


def _make_updater(config: TrainConfig, model: MetaModel, data: ClassImages, seed: int) -> Updater:
    if config.train_method == "iid":
        return IidStep(config, model, data, seed)
    return (GraphUpdater if uses_graph(config, model) else EpisodeUpdater)(config, model, data, seed)


# Several trainings of one experiment done at once by one job, each with checkpoints and a log of its own.


@dataclass(frozen=True)
class Lane:
    """One training: its own config, and where its checkpoints and its log are."""

    config: TrainConfig
    checkpoints: Path
    metrics: Path


class TrainingTogether:
    """Does several trainings, from the last step that all of them have a good checkpoint of.

    Their configs differ in nothing but inner_lr and seed.
    """

    def __init__(self, config: TrainConfig, lanes: Sequence[Lane], device: torch.device) -> None:
        data, validation = training_data(config, device)
        start = last_good_step(*(lane.checkpoints for lane in lanes))
        self.runs = [
            TrainingRun(own.config, own.config.seed, own.checkpoints, own.metrics, device, validation, start)
            for own in lanes
        ]
        models, rates = [run.model for run in self.runs], [own.config.inner_lr for own in lanes]
        self.engine, self.why = make_lanes(config, models, select_names(models[0], config.inner_params), rates)
        outers = [OuterStep(config, run.model, run.seed) for run in self.runs]
        self.static = StaticUpdate(config, outers, self.engine.run, data)
        self.player = GraphPlayer([outer.optimizer for outer in outers]) if uses_graph(config, models[0]) else None
        self.static.play = self.player or self.static.play
        for outer in outers if self.player else ():
            outer.keep_rate_on_device()
        for run, outer in zip(self.runs, outers, strict=True):
            run.restore(outer.optimizer)

    @property
    def completed(self) -> int:
        """Steps that every training has done."""
        return self.runs[0].completed

    @property
    def note(self) -> str:
        """What trains, and what came of it."""
        graph = (self.player.note or "one graph for each update") if self.player else ""
        return ", ".join(filter(None, (f"engine {self.engine.name}", self.why, self.engine.note, graph)))

    def run(self, until: int, stop: Stop, progress: Progress) -> bool:
        """Train up to step `until` and keep checkpoints of it. Returns False when stopped before (work is saved).

        Raises JobError where one of them diverges.
        """
        try:
            return train_until(self.runs, self.static.step, until, stop, progress)
        except JobError as error:
            message = f"{error} The trainings together with it end too: leave it out, or set train_together: false."
            raise JobError(message) from None
