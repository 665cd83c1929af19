"""The training loop: draw, step, log, checkpoint. It resumes exactly from any checkpoint."""

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import draw_episode
from anml.errors import ConfigError, JobError
from anml.machine import clock
from anml.meta import make_engine, uses_graph
from anml.meta.engine import EpisodeOutcome, FirstOrderEngine
from anml.meta.inner_steps import learned_rates
from anml.meta.outer_step import MetaStep, lobotomize
from anml.meta.static_update import StaticUpdate, UpdateGraph
from anml.models.meta_model import MetaModel, select_names
from anml.plugins import load_object
from anml.rng import torch_generator
from anml.train.run import RunSpec, TrainingRun, last_good_step, training_data

Stop = Callable[[], bool]
Progress = Callable[[int], None]


class Updater(Protocol):
    """A training method (config/methods.py): it updates one model once per step. The seed is `config.seed`."""

    def __init__(self, config: TrainConfig, model: MetaModel, data: ClassImages) -> None: ...

    @property
    def note(self) -> str:
        """What trains, and why it was chosen."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the model; its state is part of a checkpoint."""
        ...

    def step(self, index: int) -> EpisodeOutcome:
        """Update the model with the data of step `index` (from 0)."""
        ...


def make_updater(config: TrainConfig, model: MetaModel, data: ClassImages) -> Updater:
    """Return what trains a model by a config's method. Raises ConfigError where a user's class lacks a part."""
    reference = config.method.updater
    updater = load_object(reference)(config, model, data)
    missing = [part for part in ("note", "optimizer", "step") if not hasattr(updater, part)]
    if missing:
        message = f"train_method: {reference}: has no {', '.join(missing)}; see Updater in anml/train/loop.py"
        raise ConfigError(message)
    return updater


class EpisodeUpdater:
    """Meta-training and its first-order relatives: one step is one episode."""

    def __init__(self, config: TrainConfig, model: MetaModel, data: ClassImages) -> None:
        self.config, self.data = config, data
        self.engine, self.why = make_engine(config, model, select_names(model, config.inner_params))
        self.meta, self.rates = MetaStep(config, model, self.engine, config.seed), learned_rates(self.engine)
        self.optimizer = self.meta.optimizer

    @property
    def note(self) -> str:
        return ", ".join(filter(None, (f"engine {self.engine.name}", self.why, self.engine.note)))

    def step(self, index: int) -> EpisodeOutcome:
        return self.meta.update(draw_episode(self.data, self.config, self.config.seed, index), index)

    def curves(self, index: int) -> dict[str, float]:
        """Return accuracies around the inner loop of episode `index`, under the names of higherANML's curves.

        `inner`, before and after: of the examples that it learns. `meta` and `adapted`: of the query set, and of the
        remember set in it, with slow and with fast weights. It costs an episode of first order, on a copy of the model.
        `inner/lr`: the learned rates.
        """
        config, episode = self.config, draw_episode(self.data, self.config, self.config.seed, index)
        copied = copy.deepcopy(self.meta.model)
        if config.lobotomize:
            lobotomize(copied.head, episode.new_classes, torch_generator(config.seed, "lobotomy", index))
        names = select_names(copied, config.inner_params)
        engine = FirstOrderEngine(copied, names, config.inner, keep_fast_weights=True)
        engine.inner.rates = self.rates
        curves, learned = dict[str, float](), config.batch_size * config.inner_steps
        for inner, outer in (("before", "meta"), ("after", "adapted")):
            if inner == "after":
                engine.run(episode)
            with torch.no_grad():
                right = (copied(episode.images).argmax(dim=1) == episode.labels).float()
            curves[f"inner/acc_{inner}"] = float(right[:learned].mean())
            curves[f"{outer}/acc"] = float(right[episode.query_start :].mean())
            if config.remember_size:
                curves[f"{outer}/remember_acc"] = float(right[learned:].mean())
        if self.rates:
            rates = torch.stack([*self.rates.values()]).detach()
            curves |= {f"inner/lr_{name}": float(getattr(rates, name)()) for name in ("min", "median", "max")}
        return curves

    def static_update(self) -> StaticUpdate:
        """Return the same update on tensors that stay in their memory, for a graph."""
        self.meta.keep_lr_on_device()
        return StaticUpdate(self.config, self.meta, self.meta.run, self.data)


class Training:
    """One training, or several that keep step: their configs differ in `inner_lr` and `seed` alone.

    It begins at the last step that all have an intact checkpoint of. Each is bit for bit what it would be alone.
    On a GPU the updates of all are parallel branches of one graph.
    """

    def __init__(self, specs: Sequence[RunSpec], device: torch.device) -> None:
        config = specs[0].config
        data, validation = training_data(config, device)
        start = last_good_step(*(spec.checkpoints for spec in specs))
        self.runs = [TrainingRun(spec, device, validation, start) for spec in specs]
        self.updaters = [make_updater(run.config, run.model, data) for run in self.runs]
        for run, updater in zip(self.runs, self.updaters, strict=True):
            run.restore(updater.optimizer, updater.rates if isinstance(updater, EpisodeUpdater) else {})
        self.graph: UpdateGraph | None = None
        self.ended_at: int | None = None
        if uses_graph(config, self.runs[0].model):
            self.graph = UpdateGraph([u.static_update() for u in self.updaters if isinstance(u, EpisodeUpdater)])

    @property
    def completed(self) -> int:
        return self.runs[0].completed

    @property
    def note(self) -> str:
        several = f"{len(self.runs)} trainings at once" if len(self.runs) > 1 else ""
        ended = f"ended at step {self.ended_at}: patience" if self.ended_at is not None else ""
        return ", ".join(filter(None, (self.updaters[0].note, several, self.graph.note if self.graph else "", ended)))

    def run(self, until: int, stop: Stop, progress: Progress) -> bool:
        """Train up to step `until` and keep checkpoints of it. Returns False when stopped before (work is saved).

        Raises JobError where a training diverges.
        """
        try:
            return self._run(until, stop, progress)
        except JobError as error:
            if len(self.runs) == 1:
                raise
            message = f"{error} The trainings together with it end too: leave it out, or set train_together: false."
            raise JobError(message) from None

    def _run(self, until: int, stop: Stop, progress: Progress) -> bool:
        first = self.runs[0]
        started, since = clock(first.device), self.completed
        while self.completed < until:
            if self._is_final:
                self._skip_to(until)
                progress(until)
                break
            if stop():
                self._save()
                return False
            step = self.completed
            # A graph updates all; nobody looks at those that wait for the others.
            outcomes = self.graph.step(step) if self.graph else None
            learning = [index for index, run in enumerate(self.runs) if not run.is_over]
            for index, run in enumerate(self.runs):
                if index in learning:
                    run.take(outcomes[index] if outcomes else self.updaters[index].step(step))
                else:
                    run.completed += 1
            if self.completed % first.config.save_freq == 0 or self.completed == first.config.total_steps:
                self._validate()
            if self.completed % first.config.log_freq == 0 or self.completed == until:
                speed = (self.completed - since) / (clock(first.device) - started)
                is_rare = self.completed % first.config.save_freq == 0
                for run, updater in [(self.runs[index], self.updaters[index]) for index in learning]:
                    curves = updater.curves(self.completed) if is_rare and isinstance(updater, EpisodeUpdater) else {}
                    run.log(speed, curves)
                started, since = clock(first.device), self.completed
            if self.completed % first.config.save_freq == 0 or self.completed == until:
                self._save()
            progress(self.completed)
        return True

    def _validate(self) -> None:
        for run in self.runs:
            # One whose patience has ended waits for the others, and stays what it would be alone.
            if run.best and not run.is_over:
                run.best.validate(run.latest_model, self.completed)

    @property
    def _is_final(self) -> bool:
        return all(run.is_over for run in self.runs)

    def _skip_to(self, until: int) -> None:
        """End before the last step: no training has become better for as long as `patience` says."""
        self.ended_at = self.completed
        for run in self.runs:
            run.completed = until
        self._save()

    def _save(self) -> None:
        for run in self.runs:
            run.save()
        # Only now: until all have saved, the step before is the last that all have in common.
        for run in self.runs:
            run.drop_earlier()
