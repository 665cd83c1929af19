"""Data sets as few-shot repositories pickle them: arrays of images, read without executing what a file holds."""

import pickle
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from anml.errors import DataError

SUFFIXES = (".pkl", ".pickle")


class _Dtype:
    """The dtype of an array, of plain numbers or texts alone.

    numpy's own takes its fields and flags from a pickle unseen, and reads pointers out of the bytes of such arrays.
    """

    def __init__(self, text: str, *options: object) -> None:
        self.text, self.order = text, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def read(self, content: bytes | str) -> np.ndarray:
        if not re.fullmatch(r"[biufSU]\d+", self.text):
            message = f"it holds an array of dtype {self.text}, which is none of numbers or texts"
            raise pickle.UnpicklingError(message)
        return np.frombuffer(_encode(content), np.dtype(self.text).newbyteorder(self.order))  # type: ignore[arg-type]


class _Array:
    array: np.ndarray | None = None

    def __init__(self, *kind: object) -> None:
        """Its content comes by `__setstate__`."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        self.array = dtype.read(content).reshape(shape, order="F" if is_fortran else "C")


def _scalar(dtype: _Dtype, content: bytes | str) -> Any:
    return dtype.read(content)[0].item()


def _encode(text: bytes | str, *codec: str) -> bytes:
    """Return bytes that Python 2 pickled, or protocol 2."""
    return text.encode("latin1") if isinstance(text, str) else text


# What stands for the parts of an array, by Python 2 and 3 and by numpy 1 and 2.
_PARTS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array, ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar, ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode, ("collections", "OrderedDict"): dict,
}  # fmt: skip


class _ArraysAlone(pickle.Unpickler):
    """Makes arrays, numbers, texts, lists and mappings, and refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PARTS:
            message = f"it holds {module}.{name}, which is no array"
            raise pickle.UnpicklingError(message)
        return _PARTS[module, name]


def _value(content: Any) -> Any:
    return content.array if isinstance(content, _Array) else content


def read_pickle(path: Path, size: int) -> tuple[np.ndarray, int]:
    """Return the images of a pickle, uint8 [classes, examples, 3, size, size], and the edge that they had in pixels.

    All classes have as many as the smallest one. Either {image_data: [n, H, W, 3], class_dict: {class: indexes}}
    (mini-imagenet-cache-*.pkl), or {data: [n, H, W, 3], labels: [n]} (miniImageNet_category_split_*.pickle,
    CIFAR_FS_*.pickle). Raises DataError.
    """
    try:
        with path.open("rb") as file:
            content = _ArraysAlone(file, encoding="latin1").load()
    except Exception as error:  # A damaged pickle may raise anything.
        _refuse(path, f"cannot be read ({error})")
    if not isinstance(content, dict):
        _refuse(path, f"holds a {type(content).__name__}, not a mapping")
    images = _value(content.get("image_data", content.get("data")))
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
    return np.ascontiguousarray(_resized(chosen, size).transpose(0, 1, 4, 2, 3)), min(images.shape[1:3])


def _classes(content: dict[Any, Any], count: int) -> list[np.ndarray]:
    """Return the indexes of the images of each class, classes in order of their names or numbers."""
    if isinstance(names := content.get("class_dict"), dict):
        indexes = [np.asarray(_value(names[name])) for name in sorted(names)]
        are_numbers = all(each.dtype.kind in "iu" and each.ndim == 1 for each in indexes)
        return indexes if are_numbers and all(((each >= 0) & (each < count)).all() for each in indexes) else []
    labels = np.asarray(_value(content.get("labels", ())))
    if labels.dtype.kind not in "iuUS":
        return []
    return [np.flatnonzero(labels == label) for label in np.unique(labels)] if labels.shape == (count,) else []


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Return images [classes, examples, size, size, 3]; those of this size keep their pixels."""
    if images.shape[2:4] == (size, size):
        return images
    from PIL import Image

    side, lanczos = (size, size), Image.Resampling.LANCZOS
    flat = [np.asarray(Image.fromarray(image).resize(side, lanczos)) for image in np.concatenate(images)]
    return np.stack(flat).reshape(*images.shape[:2], size, size, 3)


def _refuse(path: Path, why: str) -> NoReturn:
    message = f"{path}: {why}. See docs/data.md for the files that are understood; fetch it again if it is damaged."
    raise DataError(message)
