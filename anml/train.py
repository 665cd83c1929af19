"""The training loop: draw, step, log, checkpoint. Resumes exactly from any checkpoint."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from anml.atomic import write_text
from anml.checkpoint import ModelCard, is_complete, load_model, load_training_state, save_checkpoint, steps_saved
from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import draw_episode, draw_validation
from anml.data.load import load_images
from anml.meta.engine import EpisodeOutcome, accuracy, make_engine
from anml.meta.step import MetaStep
from anml.models.build import build_model
from anml.models.meta_model import MetaModel
from anml.models.parameters import select_names
from anml.train_iid import IidStep


class Updater(Protocol):
    """One way of training: updates the model once per step."""

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
        engine = make_engine(config, model, select_names(model, config.inner_params))
        self.meta = MetaStep(config, model, engine, seed)
        self.optimizer = self.meta.optimizer

    def step(self, index: int) -> EpisodeOutcome:
        """Draw and run episode `index`."""
        return self.meta.update(draw_episode(self.data, self.config, self.seed, index), index)


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
        self.config, self.seed, self.device = config, seed, device
        self.checkpoints, self.metrics, self.on_log = checkpoints, metrics, on_log
        images = load_images(config.dataset, "train", config.image_shape[1], config.data_path).to(device)
        images = images.first_classes(config.num_train_classes)
        images = images.first_examples(0, config.imgs_per_class or images.examples_per_class)
        self.validation = images.first_examples(config.examples_per_class, images.examples_per_class)
        data = images.first_examples(0, config.examples_per_class)
        self.completed = self._last_good_step()
        self.model = self._initial_model().to(device)
        self.updater: Updater = (IidStep if config.train_method == "iid" else EpisodeUpdater)(
            config, self.model, data, seed
        )
        self._restore()

    def run(self, until: int, stop: Callable[[], bool], progress: Callable[[int], None]) -> bool:
        """Train up to step `until` and keep a checkpoint of it. Returns False when stopped before (work is saved)."""
        recent: list[tuple[torch.Tensor, torch.Tensor]] = []
        started = time.perf_counter()
        while self.completed < until:
            if stop():
                self._save()
                return False
            outcome = self.updater.step(self.completed)
            recent.append((outcome.loss, outcome.accuracy))
            self.completed += 1
            if self.completed % self.config.log_freq == 0 or self.completed == until:
                self._log(recent, time.perf_counter() - started)
                recent, started = [], time.perf_counter()
            if self.completed % self.config.save_freq == 0 or self.completed == until:
                self._save()
            progress(self.completed)
        return True

    def _last_good_step(self) -> int:
        for step in reversed(steps_saved(self.checkpoints)):
            if is_complete(self._folder(step)):
                return step
        return 0

    def _folder(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def _initial_model(self) -> MetaModel:
        config = self.config
        if self.completed:
            return load_model(self._folder(self.completed))[0]
        return build_model(config.model, config.model_args, config.image_shape, self.seed)

    def _restore(self) -> None:
        """Put back the optimizer's state and drop log lines that will be written again."""
        if self.completed:
            state = load_training_state(self._folder(self.completed))
            self.updater.optimizer.load_state_dict(state["optimizer"])
            lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
            kept = [line for line in lines if json.loads(line)["step"] <= self.completed]
            write_text(self.metrics, "".join(f"{line}\n" for line in kept))
        elif self.config.eval_untrained:
            self._save()
        if not self.completed:
            write_text(self.metrics, "")

    def _save(self) -> None:
        """Keep a checkpoint, and of the periodic ones before it only those that are evaluated."""
        config = self.config
        card = ModelCard(
            model=config.model,
            model_args=config.model_record.model_dump(mode="json"),
            image_shape=config.image_shape,
            display_name=config.display_name,
            dataset=config.dataset,
            train_method=config.train_method,
            step=self.completed,
            seed=self.seed,
        )
        folder = self._folder(self.completed)
        if not is_complete(folder):
            save_checkpoint(folder, self.model, card, {"optimizer": self.updater.optimizer.state_dict()})
        keep = {0, self.completed, *config.checkpoint_steps}
        for step in steps_saved(self.checkpoints):
            if step not in keep and step < self.completed:
                _remove(self._folder(step))

    def _log(self, recent: list[tuple[torch.Tensor, torch.Tensor]], seconds: float) -> None:
        # One read-back for the whole interval: reading every step would stall a GPU.
        loss, right = torch.stack([torch.stack(pair) for pair in recent]).mean(dim=0).tolist()
        line = {"step": self.completed, "loss": loss, "accuracy": right}
        if self.config.val_size:
            line["val_accuracy"] = self._validate()
        line["steps_per_second"] = round(len(recent) / seconds, 3)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.on_log(line)

    def _validate(self) -> float:
        """Return the accuracy on examples of the training classes that training never sees."""
        images, labels = draw_validation(
            self.validation, self.config.val_size, self.seed, self.completed, torch.float32
        )
        with torch.no_grad():
            return float(accuracy(self.model(images), labels))


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
