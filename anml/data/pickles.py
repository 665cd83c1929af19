"""Data sets as few-shot repositories pickle them: arrays of images, read without executing what a file holds."""

import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from anml.errors import DataError

SUFFIXES = (".pkl", ".pickle")
# What an array and its dtype are made of, by Python 2 and 3 and by numpy 1 and 2.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"), ("collections", "OrderedDict"),
}  # fmt: skip


class _ArraysAlone(pickle.Unpickler):
    """Makes arrays, numbers, texts, lists and mappings, and refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            message = f"it holds {module}.{name}, which is no array"
            raise pickle.UnpicklingError(message)
        return super().find_class(module, name)


def read_pickle(path: Path, size: int) -> np.ndarray:
    """Return the images of a pickle, uint8 [classes, examples, 3, size, size]; all classes as the smallest one.

    Either {image_data: [n, H, W, 3], class_dict: {class: indexes}} (mini-imagenet-cache-*.pkl), or {data: [n, H, W, 3],
    labels: [n]} (miniImageNet_category_split_*.pickle, CIFAR_FS_*.pickle). Raises DataError.
    """
    try:
        with path.open("rb") as file:
            content = _ArraysAlone(file, encoding="latin1").load()
    except Exception as error:  # A damaged pickle may raise anything.
        _refuse(path, f"cannot be read ({error})")
    if not isinstance(content, dict):
        _refuse(path, f"holds a {type(content).__name__}, not a mapping")
    images = content.get("image_data", content.get("data"))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        keys = ", ".join(map(str, content))
        _refuse(path, f"holds no images uint8 [n, height, width, 3] as image_data or data (it has {keys})")
    try:
        classes = _classes(content, len(images))
    except (TypeError, ValueError, OverflowError):  # Names of several kinds, or indexes that are no numbers.
        classes = []
    if not classes or not all(map(len, classes)):
        _refuse(path, f"has neither class_dict nor labels for its {len(images)} images")
    examples = min(map(len, classes))
    chosen = np.stack([images[indexes[:examples]] for indexes in classes])
    return np.ascontiguousarray(_resized(chosen, size).transpose(0, 1, 4, 2, 3))


def _classes(content: dict[Any, Any], count: int) -> list[np.ndarray]:
    """Return the indexes of the images of each class, classes in order of their names or numbers."""
    if isinstance(names := content.get("class_dict"), dict):
        indexes = [np.asarray(names[name]) for name in sorted(names)]
        # Checked before any conversion: of a structured dtype a pickle can say anything.
        are_numbers = all(each.dtype.kind in "iu" and each.ndim == 1 for each in indexes)
        return indexes if are_numbers and all(((each >= 0) & (each < count)).all() for each in indexes) else []
    labels = np.asarray(content.get("labels", ()))
    if labels.dtype.kind not in "iuUS":
        return []
    return [np.flatnonzero(labels == label) for label in np.unique(labels)] if labels.shape == (count,) else []


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Return images [classes, examples, size, size, 3]; those of this size keep their pixels."""
    if images.shape[2:4] == (size, size):
        return images
    from PIL import Image

    flat = [Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS) for image in np.concatenate(images)]
    return np.stack(flat).reshape(*images.shape[:2], size, size, 3)


def _refuse(path: Path, why: str) -> NoReturn:
    message = f"{path}: {why}. See docs/data.md for the files that are understood; fetch it again if it is damaged."
    raise DataError(message)
