"""One training's model, checkpoints and log: how it is saved, stopped and resumed."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import torch

from anml.atomic import write_text
from anml.checkpoints import ModelCard, is_complete, load_model, load_training_state, save_checkpoint, steps_saved
from anml.config.evaluation import ClassSplit
from anml.config.model_args import complete_args
from anml.config.training import TrainConfig
from anml.data import load_images
from anml.data.class_images import ClassImages
from anml.data.episodes import draw_validation
from anml.errors import DataError, JobError
from anml.experiment import step_name
from anml.machine import GpuMeter
from anml.meta.engine import EpisodeOutcome, accuracy
from anml.meta.outer_step import outer_lrs
from anml.models import build_model
from anml.models.meta_model import MetaModel, find_not_finite
from anml.train.best import BestModel

# With on_divergence: skip, so many updates in a row without a finite loss and gradient end the training.
_MOST_SKIPPED = 10


class WeightAverage:
    """An exponential moving average of a model's weights over its updates (after Polyak and Juditsky 1992).

    `model` holds the average; it starts as a copy of `source`, which after a resume is the saved average of `updates`
    updates. All floating-point state is averaged, the running statistics of a BatchNorm too; integers are copied.
    """

    def __init__(self, source: MetaModel, decay: float, updates: int = 0) -> None:
        self.decay, self.updates = decay, updates
        self.model = copy.deepcopy(source)
        # Tensors, not names: an update costs a GPU a few launches for all of them, and nothing waits for it.
        pairs = list(zip(self.model.state_dict().values(), source.state_dict().values(), strict=True))
        self.averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self.copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    def update(self) -> None:
        """Include the weights after an update: average = d * average + (1 - d) * weights.

        d = min(decay, (1 + n) / (10 + n)) at the n-th update: a short memory at first, so that the average forgets the
        initial weights (the warm-up of TensorFlow's ExponentialMovingAverage with num_updates).
        """
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(*_columns(self.averaged), 1 - decay)
        if self.copied:
            torch._foreach_copy_(*_columns(self.copied))


def _columns(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [average for average, _ in pairs], [weights for _, weights in pairs]


class RunSpec(NamedTuple):
    """A training of one seed and inner learning rate: its config, and where it keeps its work.

    checkpoints: folder of step-NNNNNN folders. metrics: JSON lines file.
    """

    config: TrainConfig
    checkpoints: Path
    metrics: Path


def new_model(config: TrainConfig) -> MetaModel:
    initialisation = config.initialisation or "uniform"
    return build_model(config.model, config.model_args, config.image_shape, config.seed, initialisation)


class TrainingRun:
    """The state of one training after `start` steps. An Updater (loop.py) updates its model.

    on_log receives each logged line.
    """

    def __init__(self, spec: RunSpec, device: torch.device, validation: ClassImages, start: int) -> None:
        self.config, self.checkpoints, self.metrics = spec
        self.device, self.validation, self.meter = device, validation, GpuMeter(device)
        self.on_log: Callable[[dict[str, Any]], None] = lambda line: None
        # Loss and accuracy of the steps since the last line of the log.
        self.recent: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.completed = start
        # With on_divergence: skip, the updates left out in a row.
        self.may_skip, self.skipped = self.config.on_divergence == "skip", 0
        # A GPU would wait for the host at every step: there the log and the checkpoints are what is checked.
        self.checks_every_step = device.type == "cpu"
        self.outer_lrs = outer_lrs(self.config)
        # What is updated; with `ema_decay` the average of it is what is validated and kept, with `keep_best` the best.
        self.model = (load_model(step_folder(self.checkpoints, start))[0] if start else new_model(self.config)).to(
            device
        )
        self.average: WeightAverage | None = None
        self.best: BestModel | None = None

    @property
    def latest_model(self) -> MetaModel:
        """The model after the last step, or its average."""
        return self.average.model if self.average else self.model

    @property
    def is_over(self) -> bool:
        """Whether `patience` has ended the training; it may wait for others."""
        return self.best is not None and self.best.is_final

    @property
    def kept_model(self) -> MetaModel:
        return self.best.model if self.best and self.best.step else self.latest_model

    def restore(self, optimizer: torch.optim.Optimizer, rates: Mapping[str, torch.Tensor]) -> None:
        """Put back what a checkpoint holds beside the model and drop log lines that will be written again.

        rates: those that the training learns for its inner loop, by name; they are set in place.
        """
        self.optimizer, self.rates = optimizer, rates
        # Trainings together go on from a common step: what one of them had kept beyond it would not belong to its log.
        for step in [step for step in steps_saved(self.checkpoints) if step > self.completed]:
            shutil.rmtree(step_folder(self.checkpoints, step))
        state = load_training_state(step_folder(self.checkpoints, self.completed)) if self.completed else {}
        if self.config.keep_best:
            self.best = BestModel(self.config, self.model, self.device, state.get("best", {}))
        if "average" in state:
            self.model.load_state_dict(state["average"])
        if self.config.ema_decay is not None:
            # The model loaded is the average, if it has one; a checkpoint without is where an average begins.
            self.average = WeightAverage(self.model, self.config.ema_decay, state.get("averaged_updates", 0))
        if "weights" in state:
            self.model.load_state_dict(state["weights"])
        if state:
            optimizer.load_state_dict(state["optimizer"])
            for name, rate in rates.items():
                rate.detach().copy_(state["rates"][name])
            self.recent = [(loss.to(self.device), right.to(self.device)) for loss, right in state["recent"]]
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        write_text(self.metrics, "".join(f"{line}\n" for line in lines if _is_of_step(line, self.completed)))
        if not state and self.config.eval_untrained:
            self.save()

    def take(self, outcome: EpisodeOutcome) -> None:
        """Note that a step was done. Raises JobError where training has diverged."""
        name = self._find_bad_gradient() if self.checks_every_step else ""
        loss = outcome.loss * torch.nan if name and self.may_skip else outcome.loss
        self.recent.append((loss, outcome.accuracy))
        self.completed += 1
        if self.checks_every_step:
            self._check_losses(self.recent[-1:])
            if name and not self.may_skip:
                self._fail(f"the gradient of {name} in", self.completed)
        if self.average:
            self.average.update()

    def log(self, steps_per_second: float, curves: Mapping[str, float] = MappingProxyType({})) -> None:
        """Write a line: means since the last one, and `curves`. Raises JobError where training has diverged."""
        # One read-back for the whole interval: reading every step would stall a GPU.
        values = torch.stack([torch.stack(pair) for pair in self.recent])
        finite = values[values[:, 0].isfinite()] if self.may_skip else values
        loss, right = finite.mean(dim=0).tolist()
        if not self.checks_every_step and (self.may_skip or not math.isfinite(loss)):
            self._check_losses(self.recent)
        self.recent = []
        line = {"step": self.completed, "loss": loss, "accuracy": right}
        if self.may_skip:
            line["skipped"] = len(values) - len(finite)
        if gradients := [p.grad for p in self.model.parameters() if p.grad is not None]:
            line["gradient_norm"] = float(torch.stack(torch._foreach_norm(gradients)).norm())
        if self.config.val_size and not self.config.method.head:
            line["val_accuracy"], line["val_top5"] = self._validate()
        if self.best and self.best.step:
            line |= {"held_out_accuracy": self.best.latest, "best_step": self.best.step}
        if self.outer_lrs:
            line["outer_lr"] = self.outer_lrs[self.completed - 1]
        line |= curves
        line["steps_per_second"] = round(steps_per_second, 3)
        line |= self.meter.read()
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.on_log(line)

    def save(self) -> None:
        """Keep a checkpoint. Raises JobError where training has diverged: a checkpoint is always finite."""
        folder = step_folder(self.checkpoints, self.completed)
        self.metrics.parent.stat()  # Where the experiment was moved away, a checkpoint would begin a second one.
        if not is_complete(folder):
            if not self.may_skip:
                self._check_losses(self.recent)
            # An average takes in every update, so it is not finite either; the best model is one from before, which
            # is all that counts of a training that is over.
            latest = self.kept_model if self.is_over else self.latest_model
            for model in dict.fromkeys((self.kept_model, latest)):
                if name := find_not_finite({**model.state_dict(), **self.rates}):
                    self._fail(f"{name} after", self.completed)
            save_checkpoint(folder, self.kept_model, self._card(), self._training_state())

    def drop_earlier(self) -> None:
        """Remove the checkpoints before the last, except the evaluated ones and one to fall back on."""
        earlier = [step for step in steps_saved(self.checkpoints) if 0 < step < self.completed]
        for step in earlier[:-1]:
            if step not in self.config.checkpoint_steps:
                shutil.rmtree(step_folder(self.checkpoints, step))

    def _check_losses(self, latest: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        are_finite = [] if not latest else torch.stack([loss for loss, _ in latest]).isfinite().tolist()
        for step, is_finite in enumerate(are_finite, self.completed - len(are_finite) + 1):
            self.skipped = 0 if is_finite else self.skipped + 1
            if self.skipped == (_MOST_SKIPPED if self.may_skip else 1):
                self._fail("the loss in", step)

    def _find_bad_gradient(self) -> str:
        """Return the name of a parameter whose gradient is not finite, or an empty string."""
        learned = {**dict(self.model.named_parameters()), **self.rates}
        gradients = {name: value.grad for name, value in learned.items() if value.grad is not None}
        return find_not_finite(gradients)

    def _fail(self, what: str, step: int) -> NoReturn:
        """Raise JobError of a training that diverged at `step` (from 1): where, what is left of it, what may help."""
        config, folder = self.config, step_folder(self.checkpoints, last_good_step(self.checkpoints))
        which, rates = f"episode {step} (seed {config.seed}, inner_lr {config.inner_lr})", "inner_lr or outer_lr"
        if not config.method.has_inner_loop:
            unit, rates = ("episode", "outer_lr") if config.method.is_episodic else ("optimizer step", "lr")
            which = f"{unit} {step} (seed {config.seed})"
        kept = f"last good checkpoint: {folder}" if folder.is_dir() else "there is no checkpoint from before"
        clip = "max_grad_norm" if config.max_grad_norm is None else "a lower max_grad_norm"
        message = (
            f"training diverged: {what} {which} is not finite; {kept}. A retry would diverge again: "
            f"launch with a lower {rates}, or with {clip}."
        )
        raise JobError(message)

    def _card(self) -> ModelCard:
        config = self.config
        return ModelCard(
            model=config.model,
            model_args=complete_args(config.model_record),
            image_shape=config.image_shape,
            display_name=config.display_name,
            dataset=config.dataset,
            train_method=config.train_method,
            step=self.completed,
            seed=config.seed,
            ema_decay=config.ema_decay,
            best_step=self.best.step or None if self.best else None,
            rotations=config.rotations,
            **_classes_of(config),
        )

    def _training_state(self) -> dict[str, Any]:
        recent = torch.stack([torch.stack(pair) for pair in self.recent]) if self.recent else []
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "recent": recent}
        if self.rates:
            state["rates"] = dict(self.rates)
        if self.average or self.best:
            state["weights"] = self.model.state_dict()
        if self.average:
            state["averaged_updates"] = self.average.updates
        if self.best:
            state["best"] = self.best.state
        if self.best and self.average:
            state["average"] = self.average.model.state_dict()
        return state

    def _validate(self) -> tuple[float, float]:
        """Return top-1 and top-5 accuracy on examples of the training classes that training never sees."""
        images, labels = draw_validation(self.validation, self.config.val_size, self.config.seed, self.completed)
        model = self.latest_model
        model.eval()  # A BatchNorm would learn from the validation set.
        with torch.no_grad():
            logits = model(images)
        model.train()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        return float(accuracy(logits, labels)), float(best.any(dim=1).float().mean())


def last_good_step(checkpoints: Path, *others: Path) -> int:
    """Return the last step with an intact checkpoint (in all of these folders), or 0."""
    for step in reversed(steps_saved(checkpoints)):
        if all(is_complete(step_folder(folder, step)) for folder in (checkpoints, *others)):
            return step
    return 0


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / step_name(step)


def training_data(config: TrainConfig, device: torch.device) -> tuple[ClassImages, ClassImages]:
    """Return the background images that training sees, and those held back for validation. Raises DataError."""
    images = load_images(config.train_request).to(device)
    images = images.first_classes(config.num_train_classes).first_examples(0, config.images_per_class)
    train = images.first_examples(0, config.examples_per_class)
    validation = images.first_examples(config.examples_per_class, None)
    validation = validation.first_examples(0, config.validation_examples)
    if (train.num_classes, train.examples_per_class) != (config.num_train_classes, config.examples_per_class):
        message = (
            f"{config.dataset}: training needs {config.num_train_classes} classes of {config.examples_per_class} "
            f"examples, found {images.num_classes} of {images.examples_per_class}"
        )
        raise DataError(message)
    if config.val_size and not config.method.head and validation.images.numel() == 0:
        message = f"{config.dataset}: validation needs examples that train_size {config.examples_per_class} leaves over"
        raise DataError(message)
    if config.rotations:
        train, validation = train.rotated(config.rotations), validation.rotated(config.rotations)
    return train, validation


def _classes_of(config: TrainConfig) -> dict[str, Any]:
    """Return what the model card says of the classes that the model has seen.

    train_classes: how many, the first ones, where training left others out. Which those are follows from a complete
    copy of the data, or from the names in a user's folder.
    """
    seen: dict[str, Any] = {}
    if isinstance(config.class_split, ClassSplit):
        seen = {"class_split": config.class_split.model_dump(mode="json"), "imgs_per_class": config.imgs_per_class}
    is_known = config.num_held_out_classes and (seen or not config.allow_incomplete)
    return seen | {"train_classes": config.num_train_classes if is_known else None}


def _is_of_step(line: str, last: int) -> bool:
    """Say whether a line of the log is whole (the last one may have been cut off) and of a step up to `last`."""
    try:
        return json.loads(line)["step"] <= last
    except (ValueError, TypeError, KeyError):
        return False
