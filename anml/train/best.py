"""The best model of a training so far (`keep_best`), judged on background classes that the training leaves out."""

import copy
from typing import Any

import torch

from anml.config.training import TrainConfig
from anml.data import load_images
from anml.data.episodes import draw_run
from anml.errors import DataError
from anml.meta.engine import accuracy
from anml.models.meta_model import MetaModel
from anml.train.few_shot import make_head

# 15 examples and 5 others, as in the usual evaluation, or three quarters where a class has fewer; of so many classes.
_EXAMPLES, _CLASSES, _BATCH = 20, 200, 500


class BestModel:
    """The best of the models that were validated: `model`, its `accuracy`, and the `step` that it is from.

    accuracy: of the method's head, or of class means, after 15 examples of up to 200 held-out classes, on 5 others: a
    gradient head would need a rate. All validations draw the same; each costs a forward pass of 20 images of a class.
    misses: validations since then without a better one. latest: accuracy of the last one.
    """

    def __init__(self, config: TrainConfig, model: MetaModel, device: torch.device, state: dict[str, Any]) -> None:
        """Continue from the `state` of a checkpoint whose model is `model`, or from the beginning: {}."""
        self.config, self.model = config, copy.deepcopy(model)
        self.accuracy, self.step, self.misses, self.latest = -1.0, 0, 0, -1.0
        vars(self).update(state)
        request = config.train_request._replace(first_class=config.num_train_classes)
        images = load_images(request).first_examples(0, min(config.images_per_class, _EXAMPLES)).to(device)
        if images.num_classes < 2 or images.examples_per_class < 2:
            message = (
                f"keep_best: needs 2 held-out classes of 2 examples, {request.name} has {images.num_classes} of "
                f"{images.examples_per_class}. Set train_classes to fewer, or leave keep_best out."
            )
            raise DataError(message)
        train = images.examples_per_class * 3 // 4
        run = draw_run(
            images, min(images.num_classes, _CLASSES), train, images.examples_per_class - train, seed=1, run=0
        )
        self.run, self.images = run, images

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it beside the model."""
        return {"accuracy": self.accuracy, "step": self.step, "misses": self.misses, "latest": self.latest}

    @property
    def is_final(self) -> bool:
        """Whether `patience` is at its end."""
        return self.config.patience is not None and self.misses >= self.config.patience

    def validate(self, model: MetaModel, step: int) -> None:
        """Compare the model after `step` steps with the best one, and keep it if it is better."""
        self.latest = self.measure(model)
        self.misses += 1
        if self.latest > self.accuracy:
            self.accuracy, self.step, self.misses = self.latest, step, 0
            self.model.load_state_dict(model.state_dict())

    def measure(self, model: MetaModel) -> float:
        """Return the accuracy of a model on held-out classes."""
        model.eval()  # A BatchNorm would learn from these images.
        with torch.no_grad():
            support, labels = self._encode(model, self.run.train_examples)
            queries, answers = self._encode(model, self.run.test_examples)
            head = make_head(self.config, len(self.run.classes), support)
            head.learn(support, labels)
            right = accuracy(head.logits(queries), answers)
        model.train()
        return float(right)

    def _encode(self, model: MetaModel, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features float64 [n, d] and labels int64 [n] of examples of a run."""
        batches = self.run.images(self.images, chosen, torch.float32).split(_BATCH)
        features = torch.cat([model.encode(batch, model.modulate(batch)) for batch in batches])
        labels = torch.arange(len(chosen), device=features.device)
        return features.double(), labels.repeat_interleave(chosen.shape[1])
