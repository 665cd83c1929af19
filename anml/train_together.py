"""Several trainings of one experiment done at once by one job, each with checkpoints and a log of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from anml.config.training import TrainConfig
from anml.meta.choose import make_lanes, uses_graph
from anml.meta.static_update import GraphPlayer, StaticUpdate
from anml.meta.step import OuterStep
from anml.models.parameters import select_names
from anml.train import Progress, Stop, train_until
from anml.training_run import TrainingRun, last_good_step, training_data


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
        """Train up to step `until` and keep checkpoints of it. Returns False when stopped before (work is saved)."""
        return train_until(self.runs, self.static.step, until, stop, progress)
