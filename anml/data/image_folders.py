"""Data sets that are folders of colour images: Mini-ImageNet, OmniImage, and any folder a user has.

An image is turned upright as its EXIF tag says, made RGB, cut to its central square, and resized by LANCZOS; one that
has the wanted size already keeps its pixels.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from anml.config.data_request import DataRequest
from anml.config.dataset_facts import DATASETS, IMAGES_FOLDER
from anml.config.image_folder import list_classes
from anml.data import mini_imagenet, omniimage
from anml.data.image_source import list_images, read_images
from anml.errors import DataError

_CHANNELS = 3


def identify(request: DataRequest, source: Path) -> str:
    """Return a text that changes whenever the images of a request do: part of the array's file name.

    Of a folder that is the names and sizes of its files, wherever it lies. An archive would have to be read for that:
    its path, size and date must do. Raises DataError.
    """
    if source.is_dir():
        facts = [[(name, _size(source / name)) for name in images] for images in select(request, source)]
    else:
        stat = source.stat()
        listed = omniimage.class_list(source) if request.dataset.startswith("omniimage") else None
        facts = [str(source), stat.st_size, stat.st_mtime_ns, listed.read_text("utf-8") if listed else None]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def select(request: DataRequest, source: Path) -> list[list[str]]:
    """Choose the images of a request: paths inside the source, class by class, equally many of each.

    Raises DataError unless the source holds what the data set should, or what is asked for.
    """
    there = list_images(source) if request.dataset != IMAGES_FOLDER else _listed_as_named(source)
    classes = _choose(request, list(there), source)
    if missing := [name for name in classes if name not in there]:
        message = f"{source}: no images in {missing[0]} (and {len(missing) - 1} more classes) that the config names"
        raise DataError(message)
    counts = {name: len(there[name]) for name in classes}
    examples = request.examples or min(counts.values(), default=0)
    if request.examples and min(counts.values(), default=0) < examples:
        worst = min(counts, key=lambda name: counts[name])
        message = f"{source}: {worst} has {counts[worst]} images, expected {examples}. Put back what is missing."
        raise DataError(message)
    _check_complete(request, source, counts)
    if not examples:
        message = f"{source}: no images of {request.dataset} here. See docs/data.md for the layout that is expected."
        raise DataError(message)
    return [there[name][:examples] for name in classes]


def write_array(stream: BinaryIO, request: DataRequest, source: Path) -> None:
    """Convert image by image into a .npy file, uint8 [classes, examples, 3, size, size]. Raises DataError."""
    images = select(request, source)
    shape = (len(images), len(images[0]), _CHANNELS, request.size, request.size)
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    start, length = stream.tell(), int(np.prod(shape[2:]))
    places = {name: place for place, name in enumerate(name for names in images for name in names)}
    done = 0
    label = f"converting {request.dataset} ({request.split})"
    for place, name, content in tqdm(
        read_images(source, places), label, len(places), unit="images", leave=False, disable=None
    ):
        stream.seek(start + place * length)
        stream.write(_decode(content, request.size, f"{source}: {name}"))
        done += 1
    if done != len(places):
        message = f"{source}: changed while it was read: {done} of {len(places)} images were found. Start again."
        raise DataError(message)


def check_shape(request: DataRequest, shape: Sequence[int], source: Path) -> None:
    """Make sure that an array converted before holds the whole data set, unless less is accepted. Raises DataError."""
    facts = DATASETS[request.dataset]
    expected = (facts.classes(request.split), facts.examples_per_class)
    if request.dataset != IMAGES_FOLDER and not request.allow_incomplete and tuple(shape[:2]) != expected:
        raise DataError(_incomplete(request, source, f"{shape[0]} classes of {shape[1]}"))


def find(request: DataRequest) -> Path:
    """Return the folder or archive that holds the images of a request. Raises DataError when there is none."""
    path = Path(request.data_path).expanduser().resolve() if request.data_path else None
    if request.dataset == "mini-imagenet":
        return mini_imagenet.find(request.split, path)
    if request.dataset != IMAGES_FOLDER:
        return omniimage.find(request.dataset, path)
    if path is None or not path.is_dir():
        message = f"{path or IMAGES_FOLDER}: there is no such folder; give --data-path a folder of folders of images"
        raise DataError(message)
    return path


def _listed_as_named(source: Path) -> dict[str, list[str]]:
    """List a user's folder under the names that the config knows: the folder around all classes is part of them."""
    return {name: [f"{name}/{file}" for file in files] for name, files in list_classes(source).items()}


def _choose(request: DataRequest, classes: list[str], source: Path) -> list[str]:
    if request.dataset == IMAGES_FOLDER:
        return list(request.classes)
    if request.dataset == "mini-imagenet":
        return mini_imagenet.choose(classes, request.split)
    return omniimage.choose(classes, source, request.split)


def _check_complete(request: DataRequest, source: Path, counts: dict[str, int]) -> None:
    facts = DATASETS[request.dataset]
    if request.dataset == IMAGES_FOLDER or request.allow_incomplete:
        return
    if len(counts) != facts.classes(request.split):
        raise DataError(_incomplete(request, source, f"{len(counts)} classes"))
    wrong = [name for name, count in counts.items() if count != facts.examples_per_class]
    if wrong:
        what = f"{counts[wrong[0]]} images in {wrong[0]}" + (
            f" (and {len(wrong) - 1} such classes more)" * bool(wrong[1:])
        )
        raise DataError(_incomplete(request, source, what))


def _incomplete(request: DataRequest, source: Path, found: str) -> str:
    facts = DATASETS[request.dataset]
    return (
        f"{source}: expected {facts.classes(request.split)} {request.split} classes of {request.dataset} with "
        f"{facts.examples_per_class} images each, found {found}. Fetch the data again; or, to work with what there is "
        "and get results that cannot be compared with others', set allow_incomplete: true"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}). Put it back or remove the link to it."
        raise DataError(message) from error


def _decode(content: bytes, size: int, where: str) -> bytes:
    from PIL import (
        Image,
        ImageOps,
        UnidentifiedImageError,
    )  # Converting happens once; loading the array later needs no image library.

    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):
                message = (
                    f"{where}: has more than 8 bits per channel ({image.mode}), which would be cut off. Convert it."
                )
                raise DataError(message)
            upright = ImageOps.exif_transpose(image).convert("RGB")
            if upright.size != (size, size):
                side = min(upright.size)
                left, top = ((length - side) // 2 for length in upright.size)
                square = upright.crop((left, top, left + side, top + side))
                upright = square.resize((size, size), Image.Resampling.LANCZOS)
            return np.asarray(upright).transpose(2, 0, 1).tobytes()
    # Pillow calls a broken PNG chunk a SyntaxError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow names the object that it was given, which tells nobody anything.
        cause = "in no known format" if isinstance(error, UnidentifiedImageError) else error
        message = f"{where}: not an image that can be read ({cause}). Replace this file, or fetch the data again."
        raise DataError(message) from error
