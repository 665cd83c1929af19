"""Images sorted by class, held as uint8; converted to floats only batch by batch, on the device."""

from dataclasses import dataclass, replace
from functools import cache

import torch

from anml.data.augment import crop_and_flip
from anml.data.stored_array import StoredArray

Batch = tuple[torch.Tensor, torch.Tensor]

# Of ImageNet's training images, in red, green and blue, on the scale of [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@cache  # A copy to a GPU for every batch would have it wait.
def _imagenet_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


@dataclass(frozen=True)
class ClassImages:
    """All images of one split.

    images: uint8 [classes, examples, channels, height, width]. A class's label is its position.
    stored: the file that a large `images` lies in, on a CPU; batches read from it what they need.
    normalise: whether batches have ImageNet's mean and standard deviation taken out (RGB), or are left in [0, 1].
    """

    images: torch.Tensor
    name: str
    normalise: bool = False
    stored: StoredArray | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.images.shape[0]

    @property
    def examples_per_class(self) -> int:
        """Number of examples of each class."""
        return self.images.shape[1]

    def to(self, device: torch.device) -> "ClassImages":
        """Return the same images, resident on a device (a CPU may leave them in their file)."""
        if self.images.device == device:
            return self
        return replace(self, images=self.images.to(device), stored=None)

    def first_examples(self, start: int, stop: int | None) -> "ClassImages":
        """Return the images without the examples outside [start, stop) of each class (None: to the last)."""
        return replace(self, images=self.images[:, start:stop])

    def first_classes(self, count: int) -> "ClassImages":
        """Return the images of the first `count` classes."""
        return replace(self, images=self.images[:count])

    def other_classes(self, count: int) -> "ClassImages":
        """Return the images of all classes but the first `count`; their labels count from 0 again."""
        return replace(self, images=self.images[count:])

    def batch(
        self,
        classes: torch.Tensor,
        examples: torch.Tensor,
        dtype: torch.dtype = torch.float32,
        augment: torch.Generator | None = None,
    ) -> Batch:
        """Return images [n, C, H, W] and labels int64 [n], for index tensors [n].

        Pixels are scaled to [0, 1], cropped and flipped at random if `augment` is a generator, then normalised.
        """
        device = self.images.device
        classes, examples = classes.to(device), examples.to(device)
        return self.floats(self._pick(classes, examples), dtype, augment), classes

    def floats(
        self, pixels: torch.Tensor, dtype: torch.dtype = torch.float32, augment: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return uint8 pixels [..., C, H, W] of these images as `batch` does."""
        # Computed in float32 whatever the dtype, so that a float64 comparison sees the very same pixel values.
        scaled = pixels.to(torch.float32).div_(255)
        if augment is not None:
            scaled = crop_and_flip(scaled, augment)
        if self.normalise:
            mean, std = _imagenet_statistics(pixels.device)
            scaled = scaled.sub_(mean).div_(std)
        return scaled.to(dtype)

    def _pick(self, classes: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
        if self.stored is None:
            return self.images[classes, examples]
        return self.stored.read(self.images, classes, examples)
