"""Omniglot (Lake, Salakhutdinov & Tenenbaum 2015): 964 background and 659 evaluation characters, 20 drawings each.

Drawings are 105x105 with white background (1) and black strokes (0), without inversion, as in the published ANML.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anml.config import cache_dir
from anml.config.evaluation import DataRequest
from anml.data.layouts import find_below
from anml.data.sources import ImageFiles, fetch, find_source, list_images
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
# The alphabets of images_background. Characters in one folder for all begin with the name of theirs.
BACKGROUND = (
    "Alphabet_of_the_Magi", "Anglo-Saxon_Futhorc", "Arcadian", "Armenian", "Asomtavruli_(Georgian)", "Balinese",
    "Bengali", "Blackfoot_(Canadian_Aboriginal_Syllabics)", "Braille", "Burmese_(Myanmar)", "Cyrillic", "Early_Aramaic",
    "Futurama", "Grantha", "Greek", "Gujarati", "Hebrew", "Inuktitut_(Canadian_Aboriginal_Syllabics)",
    "Japanese_(hiragana)", "Japanese_(katakana)", "Korean", "Latin", "Malay_(Jawi_-_Arabic)", "Mkhedruli_(Georgian)",
    "N_Ko", "Ojibwe_(Canadian_Aboriginal_Syllabics)", "Sanskrit", "Syriac_(Estrangelo)", "Tagalog", "Tifinagh",
)  # fmt: skip
# What few-shot repositories call the folder or archive of all 50 alphabets.
_MERGED = ("data", "images", "omniglot", "omniglot_resized", "omniglot_dataset")


def find(request: DataRequest) -> Path:
    """Return the zip or unpacked folder of a split: under the data path, or downloaded. Raises DataError."""
    (file, md5, _), data_path = ARCHIVES[request.split], request.folder
    if data_path is None:
        return fetch(file, OFFICIAL_ADDRESS, md5, cache_dir() / "downloads")
    expected = f"{file} or the folder {Path(file).stem}, or all 50 alphabets in one folder or data.zip"
    return find_below(data_path, request, _search, expected, ", or leave it out to download the data")


def _search(request: DataRequest, data_path: Path) -> Path | None:
    names = (ARCHIVES[request.split].file, Path(ARCHIVES[request.split].file).stem)
    # As downloaded, as cloned (python/), and as torchvision unpacks it (omniglot-py/).
    folders = (".", "omniglot", "python", "omniglot/python", "omniglot-py")
    candidates = (data_path / folder / name for folder in folders for name in names)
    return next((path for path in candidates if path.exists()), None) or _find_merged(data_path)


def _find_merged(data_path: Path) -> Path | None:
    """Return the folder or archive that holds the alphabets of both splits, as few-shot repositories keep them."""
    tops = [data_path, *(data_path / name for name in ("omniglot", "Omniglot"))]
    for folder in (top / name for top in tops for name in (".", *_MERGED)):
        if any(folder.glob(f"{BACKGROUND[0]}*")):
            return folder
    return find_source(tops, [name for name in _MERGED if name != "images"], archives_only=True)


def select(request: DataRequest, source: Path) -> list[list[str]]:
    """Return the drawings of each character: paths inside the source, characters and drawings in order of their path.

    Raises DataError unless all characters are there with all their drawings.
    """
    classes, characters = ARCHIVES[request.split].classes, list_images(source)
    if source.name.removesuffix(source.suffix) != ARCHIVES[request.split].file.removesuffix(".zip"):
        is_train = request.split == "train"
        characters = {name: characters[name] for name in characters if name.startswith(BACKGROUND) == is_train}
    if len(characters) != classes or any(len(drawings) != DRAWINGS for drawings in characters.values()):
        is_more = len(characters) > classes or max(map(len, characters.values()), default=0) > DRAWINGS
        message = f"{source}: expected {classes} characters with {DRAWINGS} drawings each, found {len(characters)} "
        message += f"characters and {sum(map(len, characters.values()))} drawings. "
        message += (
            "Take out what is not Omniglot's, such as rotated alphabets: the key rotations makes those."
            if is_more
            else "The copy is incomplete: fetch it again."
        )
        raise DataError(message)
    return list(characters.values())


def decode(content: bytes, size: int, where: str) -> bytes:
    """Return the pixels of a drawing, uint8 [1, size, size]. Raises DataError that begins with `where`."""
    from PIL import Image  # Converting happens once; loading the array later needs no image library.

    try:
        with Image.open(io.BytesIO(content)) as image:
            # "L" first: Pillow resizes 1-bit images with nearest neighbour, whatever filter is asked for.
            return np.asarray(image.convert("L").resize((size, size), Image.Resampling.LANCZOS)).tobytes()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow calls a broken PNG chunk a SyntaxError.
        message = f"{where}: a drawing that cannot be read ({error}). Fetch the data again."
        raise DataError(message) from error


OMNIGLOT = ImageFiles(find, select, decode)
