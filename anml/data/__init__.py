"""Images by class, and the episodes and trajectories drawn from them."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from anml.atomic import write_text
from anml.config.evaluation import DataRequest
from anml.config.facts import DATASETS, Split
from anml.data import image_folders, omniglot
from anml.data.class_images import ClassImages, StoredArray
from anml.data.glyphs import draw_glyphs
from anml.data.sources import cache_dir
from anml.errors import DataError

# Loads a split of a named data set as ClassImages, converting it once into one array file that all jobs share.

# Part of every array's file name: raise it when a conversion changes, and old arrays are left alone.
_CONVERSION = 1
# An array is copied out of its file up to this size, that is all of Omniglot at 84 pixels. Mini-ImageNet has 813 MB.
_COPIED_BYTES = 150_000_000


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
    dataset, split, size, data_path = request[:4]
    if DATASETS[dataset].channels == 3:
        return _array_of_folders(request)
    cache = cache_dir()
    source = Path(data_path).expanduser().resolve() if data_path else None
    # Two copies of the data at two places never share an array.
    origin = hashlib.sha256(str(source).encode()).hexdigest()[:8] if source and dataset != "glyphs" else "official"
    file = _file(request, origin)
    if not file.exists():
        array = _convert(dataset, split, size, source, cache)
        _write(file, lambda stream: np.save(stream, array))
    return file


def _array_of_folders(request: DataRequest) -> Path:
    where = (str(Path(str(request.data_path)).expanduser().resolve()), request.classes, request.examples)
    note = _file(request, f"of-{hashlib.sha256(repr(where).encode()).hexdigest()[:12]}").with_suffix(".txt")
    try:
        source = image_folders.find_images(request)
    except DataError:
        file = _noted(note)
        if file is None:
            raise
    else:
        file = _file(request, image_folders.identify(request, source))
        if not file.exists():
            _write(file, lambda stream: image_folders.write_array(stream, request, source))
        if _noted(note) != file:
            with contextlib.suppress(OSError):  # The cache may be somebody else's to write.
                write_text(note, file.name)
    image_folders.check_shape(request, np.load(file, mmap_mode="r").shape, Path(where[0]))
    return file


def _noted(note: Path) -> Path | None:
    """Return the array that was last made of a data path: it serves when the data themselves are gone from there."""
    file = note.parent / note.read_text(encoding="utf-8") if note.is_file() else None
    return file if file is not None and file.is_file() else None


def _file(request: DataRequest, origin: str) -> Path:
    return cache_dir() / f"{request.dataset}-{request.split}-{request.size}px-{origin}-v{_CONVERSION}.npy"


def _convert(dataset: str, split: Split, size: int, data_path: Path | None, cache: Path) -> np.ndarray:
    facts = DATASETS[dataset]
    if dataset == "glyphs":
        first = {"train": 0, "eval": facts.train_classes}[split]
        count = {"train": facts.train_classes, "eval": facts.eval_classes}[split]
        return draw_glyphs(range(first, first + count), drawings=facts.examples_per_class, size=size)
    return omniglot.convert(split, omniglot.find_source(split, data_path, cache), size)


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
