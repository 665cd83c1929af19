"""Omniglot (Lake, Salakhutdinov & Tenenbaum 2015): 964 background and 659 evaluation characters, 20 drawings each.

Converted once into one array file per split and size. Drawings are 105x105 with white background (1) and black
strokes (0); they stay so: no inversion, as in the published ANML.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anml.data.sources import fetch
from anml.errors import DataError

OFFICIAL_ADDRESS = "https://github.com/brendenlake/omniglot/raw/master/python"


class Archive(NamedTuple):
    """One zip of the official distribution."""

    file: str
    md5: str
    classes: int


ARCHIVES = {
    "train": Archive("images_background.zip", "68d2efa1b9178cc56df9314c21c6e718", 964),
    "eval": Archive("images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811", 659),
}
DRAWINGS = 20


def find_source(split: str, data_path: Path | None, cache: Path) -> Path:
    """Return the zip or unpacked folder of a split: under the data path, or downloaded. Raises DataError."""
    archive = ARCHIVES[split]
    if data_path is None:
        return fetch(archive.file, OFFICIAL_ADDRESS, archive.md5, cache / "downloads")
    names = (archive.file, archive.file.removesuffix(".zip"))
    # As downloaded, as cloned (python/), and as torchvision unpacks it (omniglot-py/).
    folders = (".", "omniglot", "python", "omniglot/python", "omniglot-py")
    for candidate in (data_path / folder / name for folder in folders for name in names):
        if candidate.exists():
            return candidate
    message = (
        f"{data_path}: no Omniglot here: expected {names[0]} or the folder {names[1]}. "
        "Correct --data-path (or ANML_DATA), or leave it out to download the data."
    )
    raise DataError(message)


def convert(split: str, source: Path, size: int) -> np.ndarray:
    """Read every drawing of a split: uint8 [classes, 20, 1, size, size], characters in order of their path.

    Raises DataError unless all characters are there with all their drawings, each readable.
    """
    archive = ARCHIVES[split]
    characters: dict[str, list[bytes]] = {}
    for name, content in _drawings(source):
        characters.setdefault(str(Path(name).parent), []).append(content)
    counts = {len(drawings) for drawings in characters.values()}
    if len(characters) != archive.classes or counts != {DRAWINGS}:
        found = sum(len(drawings) for drawings in characters.values())
        message = (
            f"{source}: expected {archive.classes} characters with {DRAWINGS} drawings each, found "
            f"{len(characters)} characters and {found} drawings. The copy is incomplete: fetch it again."
        )
        raise DataError(message)
    pixels = [[_resize(d, size, source) for d in characters[c]] for c in sorted(characters)]
    return np.asarray(pixels, dtype=np.uint8)[:, :, None]


def _drawings(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (path, PNG bytes) of every drawing, sorted by path, out of a zip or a folder."""
    try:
        if source.is_dir():
            for path in sorted(source.rglob("*.png")):
                yield str(path.relative_to(source)), path.read_bytes()
            return
        with zipfile.ZipFile(source) as archive:
            for name in sorted(n for n in archive.namelist() if n.endswith(".png")):
                yield name.split("/", 1)[-1], archive.read(name)
    # A flipped byte also shows as another compression method, a password or a stream that does not inflate.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        message = f"{source}: damaged or unreadable ({error}). Delete it and fetch it again."
        raise DataError(message) from error


def _resize(png: bytes, size: int, source: Path) -> np.ndarray:
    from PIL import Image  # Converting happens once; loading the array later needs no image library.

    try:
        with Image.open(io.BytesIO(png)) as image:
            # "L" first: Pillow resizes 1-bit images with nearest neighbour, whatever filter is asked for.
            return np.asarray(image.convert("L").resize((size, size), Image.Resampling.LANCZOS))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a broken PNG chunk a SyntaxError.
        message = f"{source}: holds a drawing that cannot be read ({error}). Fetch the archive again."
        raise DataError(message) from error
