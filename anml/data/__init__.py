"""Loads a split of a named data set as ClassImages, converting it once into one array file that all jobs share."""

import contextlib
import functools
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from anml.atomic import write_json
from anml.config import cache_dir
from anml.config.evaluation import DataRequest
from anml.config.facts import DATASETS, Dataset, dataset_label, find_dataset
from anml.data.class_images import ClassImages, StoredArray, in_channels, write_array
from anml.data.pickles import SUFFIXES, read_pickle
from anml.data.sources import ImageFiles, Images, fingerprint, identify, read_images, read_record
from anml.errors import AnmlError, DataError
from anml.plugins import frozen_or_given

# Part of every file name in the cache: raise it when a conversion changes, and old arrays are left alone.
_CONVERSION = 2
# An array is copied out of its file up to this size, that is all of Omniglot at 84 pixels. Mini-ImageNet has 813 MB.
_COPIED_BYTES = 150_000_000
# Grey images below this mean, of 255, are light on dark: Omniglot's, dark on light, have 236.
_DARK = 64


def load_images(request: DataRequest) -> ClassImages:
    """Return the images of the background ("train") or the evaluation classes ("eval"), from `first_class` on.

    Raises DataError.
    """
    file, name, facts = array_file(request), request.name, find_dataset(request.dataset)
    array = np.load(file, mmap_mode="r")
    if array.nbytes <= _COPIED_BYTES:
        # A copy: a training of days then survives a cleaned cache.
        images, stored = torch.from_numpy(np.array(array[request.first_class :])), None
    else:
        stored = StoredArray(file)
        images = stored.tensor[request.first_class :]
    channels = request.channels or images.shape[2]
    if channels != images.shape[2] and images.shape[2] not in (1, 3):
        message = f"{name}: images of {images.shape[2]} channels are neither grey nor RGB; leave channels out"
        raise DataError(message)
    normalised = find_dataset(request.normalised_as).mean_std if request.normalised_as else facts.mean_std
    return ClassImages(images, name, in_channels(normalised, channels), stored, facts.are_characters, channels)


def notices_of(request: DataRequest, data: ClassImages) -> Iterator[str]:
    """Yield what a user should know of images before anything learns from them."""
    edge = read_record(_record(request)).get("edge")
    if edge and edge < request.size:
        yield f"{data.name}: images of {edge} pixels are enlarged to {request.size} (im_size)"
    first = data.images[:, 0].float()
    if (first == first[:, :1]).all() and first.mean() < _DARK:
        message = (
            f"{data.name}: grey images, light on dark; those of omniglot and glyphs are dark on light, and a model "
        )
        yield f"{message}that was trained on the ones sees the others as something else"


def array_file(request: DataRequest) -> Path:
    """Return the array file of a split, made now if this machine does not have it yet. Raises DataError."""
    dataset = find_dataset(request.dataset)
    loader = dataset.load()
    if not isinstance(loader, ImageFiles):
        return _array_of_function(request, dataset, loader)
    file = _array_of_files(request, loader)
    loader.check(request, np.load(file, mmap_mode="r").shape)
    return file


def _array_of_function(request: DataRequest, dataset: Dataset, loader: Callable[..., Any]) -> Path:
    file = _file(request, _origin(request, dataset, loader))
    if file.exists():
        _check_shape(request, dataset, np.load(file, mmap_mode="r").shape)
        return file
    try:
        array = loader(request.split, request.size, request.folder)
    except AnmlError:
        raise
    except Exception as error:  # The user mends whatever the user's function raises.
        message = f"{request.dataset}: loading the split {request.split} failed: {type(error).__name__}: {error}"
        raise DataError(message) from error
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        message = f"{request.dataset}: its loader must return a numpy array of uint8, found {kind}"
        raise DataError(message)
    _check_shape(request, dataset, array.shape)
    _write(file, lambda stream: np.save(stream, array))
    return file


def _check_shape(request: DataRequest, dataset: Dataset, shape: Sequence[int]) -> None:
    """Raise DataError unless an array has the shape that its record promises, or fewer images where that is allowed."""
    counts = (dataset.classes(request.split), dataset.examples_per_class)
    expected = (*counts, dataset.channels, request.size, request.size)
    is_image = len(shape) == len(expected) and tuple(shape[2:]) == expected[2:]
    if is_image and (tuple(shape) == expected or (request.allow_incomplete and min(shape) > 0)):
        return
    message = f"{request.dataset}: its loader must return [classes, examples, channels, size, size] = {list(expected)} "
    message += f"for the split {request.split}, found {list(shape)}. Correct the loader, or the counts in its Dataset."
    raise DataError(message)


def _origin(request: DataRequest, dataset: Dataset, loader: Callable[..., Any]) -> str:
    """Return what the array of a function is made of: its code, and the files below the data path."""
    if dataset.ignores_data_path and request.dataset in DATASETS:
        return "drawn"
    origin = request.dataset.rpartition(":")[0]
    files = {frozen_or_given(Path(origin)) if origin.endswith(".py") else _file_of_module(origin)}
    files.add(_file_of_module(getattr(loader, "__module__", "")))
    code = sorted(file.read_bytes() for file in files if file.is_file())
    data = None if dataset.ignores_data_path else fingerprint(request.folder)
    return hashlib.sha256(repr((code, data)).encode()).hexdigest()[:16]


def _file_of_module(name: str) -> Path:
    return Path(str(getattr(sys.modules.get(name), "__file__", "")))


def _array_of_files(request: DataRequest, files: ImageFiles) -> Path:
    record = _record(request)
    last = _file(request, contents) if (contents := read_record(record).get("contents")) else None
    if request.data_path is None and last and last.is_file():
        return last  # What is downloaded has a known checksum: it need not be kept.
    try:
        source = files.find(request)
    except DataError:
        if last and last.is_file():
            return last  # The images are gone from there.
        raise
    if source.suffix in SUFFIXES:
        return _array_of_pickle(request, source, record)
    select = functools.cache(lambda: files.select(request, source))
    contents = identify(source, select, record, files.beside(source))
    file = _file(request, contents)
    if not file.exists():
        _write(file, lambda stream: write_array(stream, source, select(), request.size, files.decode, contents))
    if "edge" not in read_record(record):
        _note_edge(record, _smallest_edge(source, select()))
    return file


def _array_of_pickle(request: DataRequest, source: Path, record: Path) -> Path:
    # A pickle is one file: its bytes stand for its images.
    file = _file(request, identify(source.parent, lambda: [[source.name]], record))
    if not file.exists() or "edge" not in read_record(record):
        array, edge = read_pickle(source, request.size)
        if not file.exists():
            _write(file, lambda stream: np.save(stream, array))
        _note_edge(record, edge)
    return file


def _record(request: DataRequest) -> Path:
    """Return the file that says what was found at a data path."""
    where = (request.folder, request.classes, request.examples)
    key = hashlib.sha256(repr(where).encode()).hexdigest()[:12]
    return cache_dir() / f"{dataset_label(request.dataset)}-{request.split}-of-{key}-v{_CONVERSION}.json"


def _note_edge(record: Path, edge: int | None) -> None:
    with contextlib.suppress(OSError):  # The cache may be read-only.
        write_json(record, read_record(record) | {"edge": edge})


def _smallest_edge(source: Path, images: Images) -> int | None:
    """Return the smallest edge in pixels of the first image of each class; None of files that Pillow does not read."""
    from PIL import Image

    firsts = {files[0]: place for place, files in enumerate(images)}
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        return min(min(Image.open(io.BytesIO(content)).size) for *_, content in read_images(source, firsts))
    return None


def _file(request: DataRequest, origin: str) -> Path:
    label = dataset_label(request.dataset)
    return cache_dir() / f"{label}-{request.split}-{request.size}px-{origin}-v{_CONVERSION}.npy"


def _write(file: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write an array so that no job sees half a file: each job writes a file of its own and gives it the name."""
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
            f"{file.parent}: cannot write the converted array ({error.strerror}). Set ANML_CACHE to a folder with "
        )
        message += "space that you may write to."
        raise DataError(message) from error
