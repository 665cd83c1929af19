"""Images sorted by class, held as uint8; converted to floats only batch by batch, on the device."""

import mmap
from dataclasses import dataclass, replace

import torch

from anml.data.augment import crop_and_flip

Batch = tuple[torch.Tensor, torch.Tensor]

# Of ImageNet's training images, in red, green and blue, on the scale of [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ClassImages:
    """All images of one split.

    images: uint8 [classes, examples, channels, height, width]. A class's label is its position.
    mapping: the file that a large `images` lies in, unread but for what batches have drawn.
    normalise: whether batches have ImageNet's mean and standard deviation taken out (RGB), or are left in [0, 1].
    """

    images: torch.Tensor
    name: str
    normalise: bool = False
    mapping: mmap.mmap | None = None

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
        moved = replace(self, images=self.images.to(device), mapping=None)
        self._forget_pages()
        return moved

    def first_examples(self, start: int, stop: int | None) -> "ClassImages":
        """Return the images without the examples outside [start, stop) of each class (None: to the last)."""
        return replace(self, images=self.images[:, start:stop])

    def first_classes(self, count: int) -> "ClassImages":
        """Return the images of the first `count` classes."""
        return replace(self, images=self.images[:count])

    def batch(
        self,
        classes: torch.Tensor,
        examples: torch.Tensor,
        dtype: torch.dtype = torch.float32,
        augment: torch.Generator | None = None,
    ) -> Batch:
        """Return images [n, C, H, W] and labels int64 [n], for index tensors [n].

        Pixels are scaled to [0, 1], cropped and flipped at random if a generator is given to `augment`, then normalised.
        """
        device = self.images.device
        classes, examples = classes.to(device), examples.to(device)
        # Computed in float32 whatever the dtype, so that a float64 comparison sees the very same pixel values.
        pixels = self.images[classes, examples].to(torch.float32).div_(255)
        self._forget_pages()
        if augment is not None:
            pixels = crop_and_flip(pixels, augment)
        if self.normalise:
            mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
            pixels = pixels.sub_(mean).div_(std)
        return pixels.to(dtype), classes

    def _forget_pages(self) -> None:
        # Pages that were read count as this process's memory, after an epoch the whole file. The system keeps a copy.
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)
