"""A large array of images that stays in its file: only the images that are drawn are read."""

import os
import weakref
from pathlib import Path

import numpy as np
import torch

from anml.errors import DataError


class StoredArray:
    """An open .npy file, uint8 [classes, examples, channels, height, width].

    tensor: all of it, mapped into memory (copy-on-write, as torch wants memory that may be written; nothing writes).
    Drawing from that would do, but pages that were touched count as this process's memory, and a system with large
    pages maps megabytes for every image: 128 images of Mini-ImageNet took 200 MB, an epoch the whole file.
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
        found = torch.empty(len(classes), *view.shape[2:], dtype=torch.uint8)
        rows = found.numpy().reshape(len(classes), -1)
        places = self._start + view.storage_offset() + classes * view.stride(0) + examples * view.stride(1)
        for row, place in zip(rows, places.tolist(), strict=True):
            if os.preadv(self._descriptor, [row.data], place) != len(row):
                message = f"{self.path}: became shorter while it was in use. Delete it; it will be converted again."
                raise DataError(message)
        return found
