"""Images by class, and the episodes and trajectories drawn from them."""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch

from anml.config.evaluation import DataRequest
from anml.config.facts import DATASETS
from anml.data import image_folders, omniglot
from anml.data.class_images import ClassImages, StoredArray, write_array
from anml.data.contents import identify, recorded
from anml.data.glyphs import draw_glyphs
from anml.data.sources import cache_dir
from anml.errors import DataError

# Loads a split of a named data set as ClassImages, converting it once into one array file that all jobs share.

# Part of every file name in the cache: raise it when a conversion changes, and old arrays are left alone.
_CONVERSION = 2
# An array is copied out of its file up to this size, that is all of Omniglot at 84 pixels. Mini-ImageNet has 813 MB.
_COPIED_BYTES = 150_000_000


class _Pictures(NamedTuple):
    """How the images of a data set are found, chosen and decoded. beside: files that the choice depends on."""

    find: Callable[[DataRequest], Path]
    select: Callable[[DataRequest, Path], list[list[str]]]
    decode: Callable[[bytes, int, str], bytes]
    beside: Callable[[Path], list[Path]]


_OMNIGLOT = _Pictures(
    lambda request: omniglot.find_source(request.split, _resolved(request.data_path), cache_dir()),
    lambda request, source: omniglot.select(request.split, source),
    omniglot.decode,
    lambda source: [],
)
_PHOTOGRAPHS = _Pictures(image_folders.find_images, image_folders.select, image_folders.decode, image_folders.beside)


def load_images(request: DataRequest) -> ClassImages:
    """Return the images of the background ("train") or the evaluation classes ("eval"), from `first_class` on.

    Raises DataError.
    """
    file, name = array_file(request), request.name
    # Normalised as is usual for photographs; characters are left as the published ANML saw them.
    normalise = DATASETS[request.dataset].channels == 3
    array = np.load(file, mmap_mode="r")
    if array.nbytes <= _COPIED_BYTES:
        # Out of the file: a training of days then survives a cleaned cache.
        return ClassImages(torch.from_numpy(np.array(array[request.first_class :])), name, normalise)
    stored = StoredArray(file)
    return ClassImages(stored.tensor, name, normalise, stored).other_classes(request.first_class)


def array_file(request: DataRequest) -> Path:
    """Return the array file of a split, made now if this machine does not have it yet. Raises DataError."""
    if request.dataset == "glyphs":
        file = _file(request, "drawn")
        if not file.exists():
            _write(file, lambda stream: np.save(stream, _draw(request)))
        return file
    is_colour = DATASETS[request.dataset].channels == 3
    file = _array_of_pictures(request, _PHOTOGRAPHS if is_colour else _OMNIGLOT)
    if is_colour:
        image_folders.check_shape(request, np.load(file, mmap_mode="r").shape, Path(str(request.data_path)))
    return file


def _array_of_pictures(request: DataRequest, pictures: _Pictures) -> Path:
    where = (_resolved(request.data_path), request.classes, request.examples)
    key = hashlib.sha256(repr(where).encode()).hexdigest()[:12]
    record = cache_dir() / f"{request.dataset}-{request.split}-of-{key}-v{_CONVERSION}.json"
    last = _file(request, contents) if (contents := recorded(record)) else None
    if request.data_path is None and last and last.is_file():
        return last  # What is downloaded has a known checksum: it need not be kept.
    try:
        source = pictures.find(request)
    except DataError:
        if last and last.is_file():
            return last  # The images are gone from there.
        raise
    select = functools.cache(lambda: pictures.select(request, source))
    contents = identify(source, select, record, pictures.beside(source))
    file = _file(request, contents)
    if not file.exists():
        _write(file, lambda stream: write_array(stream, source, select(), request.size, pictures.decode, contents))
    return file


def _resolved(data_path: str | None) -> Path | None:
    return Path(data_path).expanduser().resolve() if data_path else None


def _file(request: DataRequest, origin: str) -> Path:
    return cache_dir() / f"{request.dataset}-{request.split}-{request.size}px-{origin}-v{_CONVERSION}.npy"


def _draw(request: DataRequest) -> np.ndarray:
    facts = DATASETS[request.dataset]
    first = {"train": 0, "eval": facts.train_classes}[request.split]
    classes = range(first, first + facts.classes(request.split))
    return draw_glyphs(classes, drawings=facts.examples_per_class, size=request.size)


def _write(file: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write an array so that ten jobs starting at once never see half a file: each writes its own, one name wins."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as temporary:
            try:
                write(temporary)  # type: ignore[arg-type]
                temporary.flush()
                os.fsync(temporary.fileno())
                os.chmod(temporary.name, 0o644)  # A temporary file is its owner's alone, a cache may be a group's.
                os.replace(temporary.name, file)
            except BaseException:
                Path(temporary.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        message = (
            f"{file.parent}: cannot write the converted array ({error.strerror}). "
            "Set ANML_CACHE to a folder with space that you may write to."
        )
        raise DataError(message) from error
