"""Loads a split of a named data set as ClassImages, converting it once into one array file that all jobs share."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from anml.config.dataset_facts import DATASETS
from anml.data import omniglot
from anml.data.class_images import ClassImages
from anml.data.fetch import cache_dir
from anml.data.glyphs import draw_glyphs
from anml.errors import DataError

Split = Literal["train", "eval"]

# Part of every array's file name: raise it when a conversion changes, and old arrays are left alone.
_CONVERSION = 1


def load_images(dataset: str, split: Split, size: int, data_path: str | None) -> ClassImages:
    """Return the images of the background ("train") or the evaluation classes ("eval"). Raises DataError."""
    array = np.load(array_file(dataset, split, size, data_path), mmap_mode="r")
    # Copied out of the file: a training of days then survives a cleaned cache.
    return ClassImages(torch.from_numpy(np.array(array)), dataset)


def array_file(dataset: str, split: Split, size: int, data_path: str | None) -> Path:
    """Return the array file of a split, made now if this machine does not have it yet."""
    cache = cache_dir()
    source = Path(data_path).expanduser().resolve() if data_path else None
    # Two copies of the data at two places never share an array.
    origin = hashlib.sha256(str(source).encode()).hexdigest()[:8] if source and dataset != "glyphs" else "official"
    file = cache / f"{dataset}-{split}-{size}px-{origin}-v{_CONVERSION}.npy"
    if not file.exists():
        _write(file, _convert(dataset, split, size, source, cache))
    return file


def _convert(dataset: str, split: Split, size: int, data_path: Path | None, cache: Path) -> np.ndarray:
    facts = DATASETS[dataset]
    if dataset == "glyphs":
        first = {"train": 0, "eval": facts.train_classes}[split]
        count = {"train": facts.train_classes, "eval": facts.eval_classes}[split]
        return draw_glyphs(range(first, first + count), drawings=facts.examples_per_class, size=size)
    return omniglot.convert(split, omniglot.find_source(split, data_path, cache), size)


def _write(file: Path, array: np.ndarray) -> None:
    """Write an array so that ten jobs starting at once never see half a file: each writes its own, one name wins."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as temporary:
            try:
                np.save(temporary, array)
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
