"""What the frozen part of a model makes of a split's images, each image once for all runs of a sweep."""

import copy

import torch

from anml.data.class_images import ClassImages
from anml.evaluate.stages import Stage, advance
from anml.models.meta_model import MetaModel
from anml.native.blocks import use_native_blocks


class Features:
    """Filled class by class when asked: a class is always one batch, so no value depends on what else was asked for."""

    def __init__(self, model: MetaModel, data: ClassImages, stage: Stage, dtype: torch.dtype) -> None:
        """Use the model as it is (in eval mode, of this dtype) for the images of a split."""
        self.model, self.data, self.dtype = copy.deepcopy(model), data, dtype
        self.stage: Stage = stage
        self.known: set[int] = set()
        self.values = torch.empty(0)

    def use_native_blocks(self) -> None:
        """Encode with the kernels in C++."""
        use_native_blocks(self.model)

    def take(self, classes: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
        """Return features [n, d] for index tensors int64 [n]."""
        for index in sorted(set(classes.tolist()) - self.known):
            self._fill(index)
        device = self.values.device
        return self.values[classes.to(device), examples.to(device)]

    def _fill(self, index: int) -> None:
        examples = torch.arange(self.data.examples_per_class)
        images, _ = self.data.batch(torch.full_like(examples, index), examples, self.dtype)
        values = advance(self.model, images, self.stage)
        if not self.known:
            self.values = values.new_empty(self.data.num_classes, *values.shape)
        self.values[index] = values
        self.known.add(index)
