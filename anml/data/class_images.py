"""Images sorted by class, held as uint8; converted to floats only batch by batch, on the device."""

from dataclasses import dataclass

import torch

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ClassImages:
    """All images of one split.

    images: uint8 [classes, examples, channels, height, width]. A class's label is its position.
    """

    images: torch.Tensor
    name: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.images.shape[0]

    @property
    def examples_per_class(self) -> int:
        """Number of examples of each class."""
        return self.images.shape[1]

    def to(self, device: torch.device) -> "ClassImages":
        """Return the same images, resident on a device."""
        return ClassImages(self.images.to(device), self.name)

    def first_examples(self, start: int, stop: int) -> "ClassImages":
        """Return the images without the examples outside [start, stop) of each class."""
        return ClassImages(self.images[:, start:stop], self.name)

    def first_classes(self, count: int) -> "ClassImages":
        """Return the images of the first `count` classes."""
        return ClassImages(self.images[:count], self.name)

    def batch(self, classes: torch.Tensor, examples: torch.Tensor, dtype: torch.dtype = torch.float32) -> Batch:
        """Return images [n, C, H, W] scaled to [0, 1] and labels int64 [n], for index tensors [n]."""
        device = self.images.device
        classes, examples = classes.to(device), examples.to(device)
        return to_floats(self.images[classes, examples], dtype), classes


def to_floats(pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return uint8 pixels scaled to [0, 1]."""
    # Divided in float32 whatever the dtype, so that a float64 comparison sees the very same pixel values.
    return (pixels.to(torch.float32) / 255).to(dtype)
