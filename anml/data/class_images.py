"""Images sorted by class, held as uint8 in memory or in their array file; batches of them, as floats on the device.

A batch may be augmented by random resized crops and horizontal flips, as in Szegedy et al. 2015 ("Going deeper with
convolutions", section 6): a crop of 8 to 100 % of the image's area with an aspect ratio between 3/4 and 4/3, resized to
the size of the image.
"""

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample
from tqdm import tqdm

from anml.config.facts import MeanStd
from anml.data.sources import Images, digest, joined, places_of, read_images
from anml.errors import DataError

AREA = (0.08, 1.0)
# Of characters, as in higherANML.
AREA_OF_CHARACTERS = (0.8, 1.0)
RATIO = (3 / 4, 4 / 3)
FLIPPED = 0.5
# Of red, green and blue in grey (ITU-R BT.601, as in Pillow).
LUMINANCE = (0.299, 0.587, 0.114)
# Half a grey level: a crop whose pixels differ by less, in every channel, is blank.
BLANK = 0.5 / 255
# A wide crop of nearly the whole area would stick out: it is drawn again so often, then the whole image is taken.
_TRIES = 10


def crop_and_flip(images: torch.Tensor, generator: torch.Generator, are_characters: bool = False) -> torch.Tensor:
    """Return a random crop of each square image [n, C, H, W], resized bilinearly to [H, W] and mirrored half the time.

    Crops begin at any fraction of a pixel. They depend on the generator alone, so that all devices agree. Of characters
    they are of `AREA_OF_CHARACTERS`, and none is mirrored. A blank crop gives the whole image instead: it shows nothing
    of its class, and an InstanceNorm multiplies its rounding by 316.
    """
    boxes = draw_crops(len(images), generator, *([AREA_OF_CHARACTERS] if are_characters else []))
    chance = 0.0 if are_characters else FLIPPED
    mirrored = torch.rand(len(images), generator=generator, dtype=torch.float64) < chance
    left, top, width, height = boxes.unbind(dim=1)
    zero = torch.zeros_like(left)
    # Rows map output coordinates, from -1 to 1 across the image, to input coordinates.
    across = torch.stack([torch.where(mirrored, -width, width), zero, 2 * left + width - 1], dim=1)
    down = torch.stack([zero, height, 2 * top + height - 1], dim=1)
    grid = affine_grid(torch.stack([across, down], dim=1).to(images), list(images.shape), align_corners=False)
    crops = grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    contrast = (crops.amax(dim=(2, 3)) - crops.amin(dim=(2, 3))).amax(dim=1)
    return torch.where((contrast < BLANK)[:, None, None, None], images, crops)


def draw_crops(count: int, generator: torch.Generator, within: tuple[float, float] = AREA) -> torch.Tensor:
    """Return crops, float64 [count, 4]: left, top, width and height as fractions of a square image.

    Area uniform `within` two fractions, aspect ratio (width to height) log-uniform in RATIO, place uniform.
    """
    area, ratio, x, y = torch.rand(4, count, _TRIES, generator=generator, dtype=torch.float64)
    low, high = torch.tensor(RATIO, dtype=torch.float64).log()
    area, ratio = within[0] + (within[1] - within[0]) * area, (low + (high - low) * ratio).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    tries = torch.stack([x * (1 - width), y * (1 - height), width, height], dim=2)
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(dim=1)
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    return torch.where(fits.any(dim=1)[:, None], tries[torch.arange(count), first], whole)


def write_array(
    stream: BinaryIO, source: Path, images: Images, size: int, decode: Callable[[bytes, int, str], bytes], contents: str
) -> None:
    """Convert image by image into a .npy file, uint8 [classes, examples, channels, size, size].

    decode: makes uint8 [channels, size, size] of a file's content, the size, and what to call it in errors.
    contents: the checksum of the images. Raises DataError, also when they are no longer those.
    """
    places = places_of(images)
    digests = [b""] * len(places)
    start = 0
    label = f"converting {source.name}"
    images_read = tqdm(read_images(source, places), label, len(places), unit="images", leave=False, disable=None)
    for place, name, content in images_read:
        pixels = decode(content, size, f"{source}: {name}")
        if not start:
            shape = (len(images), len(images[0]), len(pixels) // size**2, size, size)
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            start = stream.tell()
        stream.seek(start + place * len(pixels))
        stream.write(pixels)
        digests[place] = digest(content)
    if joined(images, digests) != contents:
        message = f"{source}: its images changed while they were read. Start again."
        raise DataError(message)


class StoredArray:
    """An open .npy file, uint8 [classes, examples, channels, height, width].

    tensor: all of it, mapped into memory (copy-on-write, as torch wants memory that may be written; nothing writes).
    `read` reads the file instead: pages of mapped memory that were touched count as this process's memory, and a system
    with large pages maps megabytes for every image (128 images of Mini-ImageNet took 200 MB, an epoch the whole file).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        array = np.load(path, mmap_mode="c")
        self.tensor = torch.from_numpy(array)
        self._start = array.offset
        # Open for as long as this object lives: a file that is deleted stays readable to those who have it open.
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, view: torch.Tensor, classes: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
        """Return view[classes, examples], uint8 [n, C, H, W], read from the file.

        view: a part of `tensor`, of some classes and examples but with whole images. Raises DataError.
        """
        images = torch.empty(len(classes), *view.shape[2:], dtype=torch.uint8)
        rows = images.numpy().reshape(len(classes), -1)
        offsets = self._start + view.storage_offset() + classes * view.stride(0) + examples * view.stride(1)
        for row, offset in zip(rows, offsets.tolist(), strict=True):
            if os.preadv(self._descriptor, [row.data], offset) != len(row):
                message = f"{self.path}: became shorter while it was in use. Delete it; it will be converted again."
                raise DataError(message)
        return images


def converted(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Return grey images [..., 1, H, W] as [..., 3, H, W], or colour images as grey ones."""
    if channels == 1:
        parts = zip(LUMINANCE, images.unbind(-3), strict=True)
        return torch.stack([weight * part for weight, part in parts]).sum(dim=0).unsqueeze(-3)
    return images.repeat_interleave(channels, dim=-3)


def in_channels(mean_std: MeanStd | None, channels: int) -> MeanStd | None:
    """Return what converted images are normalised by."""
    if mean_std is None or len(mean_std[0]) == channels:
        return mean_std
    mean, std = (torch.tensor(values)[:, None, None] for values in mean_std)
    return tuple(converted(mean, channels).flatten().tolist()), tuple(converted(std, channels).flatten().tolist())


Batch = tuple[torch.Tensor, torch.Tensor]


@cache  # A GPU would wait for a copy with every batch.
def _on_device(mean_std: MeanStd, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in mean_std)
    return mean, std


@dataclass(frozen=True)
class ClassImages:
    """All images of one split.

    images: uint8 [classes, examples, channels, height, width]. A class's label is its position.
    stored: the file that a large `images` lies in, on a CPU; batches read from it what they need.
    mean_std: what batches are normalised by, channel by channel; None leaves them in [0, 1].
    are_characters: how they are augmented.
    channels: of batches, 1 or 3, if not as in `images`: grey is the luminance of colours, colours are three times grey.
    """

    images: torch.Tensor
    name: str
    mean_std: MeanStd | None = None
    stored: StoredArray | None = None
    are_characters: bool = False
    channels: int | None = None

    @property
    def num_classes(self) -> int:
        return self.images.shape[0]

    @property
    def examples_per_class(self) -> int:
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
        return replace(self, images=self.images[:count])

    def rotated(self, angles: Sequence[int]) -> "ClassImages":
        """Return each class once for each angle (degrees, multiples of 90): first all classes by the first angle, ...

        All images are held in memory then.
        """
        count = self.num_classes
        # Filled part by part: all turned parts beside their concatenation would be twice the memory.
        images = self.images.new_empty(len(angles) * count, *self.images.shape[1:])
        for part, angle in zip(images.split(count), angles, strict=True):
            part.copy_(torch.rot90(self.images, angle // 90, (-2, -1)))
        return replace(self, images=images, stored=None)

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
        pixels = self.stored.read(self.images, classes, examples) if self.stored else self.images[classes, examples]
        return self.floats(pixels, dtype, augment), classes

    def floats(
        self, pixels: torch.Tensor, dtype: torch.dtype = torch.float32, augment: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return uint8 pixels [..., C, H, W] of these images as `batch` does."""
        # Computed in float32 whatever the dtype, so that a float64 comparison sees the very same pixel values.
        scaled = pixels.to(torch.float32).div_(255)
        if self.channels not in (None, scaled.shape[-3]):
            scaled = converted(scaled, self.channels)
        if augment is not None:
            scaled = crop_and_flip(scaled, augment, self.are_characters)
        if self.mean_std:
            mean, std = _on_device(self.mean_std, pixels.device)
            scaled = scaled.sub_(mean).div_(std)
        return scaled.to(dtype)
