"""Mini-ImageNet (Vinyals et al. 2016, split of Ravi & Larochelle 2017): 64, 16 and 20 classes of 600 images.

Training uses `train`, evaluation `test`; `val` is left alone. Images are 84x84 RGB JPEGs, a folder per WordNet class.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anml.config.evaluation import DataRequest
from anml.config.facts import DATASETS, IMAGES_FOLDER, Split
from anml.config.image_folder import ClassSplit, list_classes, own_split, split_by_fraction
from anml.data.sources import find_source, list_images
from anml.errors import DataError

FOLDERS = {"train": "train", "eval": "test"}
_NAMES = ("mini-imagenet", "mini_imagenet", "miniimagenet", "MiniImageNet")
_INNER = "processed_images"


def find_mini_imagenet(split: Split, data_path: Path | None) -> Path:
    """Return the folder or archive that holds a split of Mini-ImageNet. Raises DataError."""
    folder = FOLDERS[split]
    if data_path is None:
        message = (
            "mini-imagenet cannot be downloaded automatically: its images are ImageNet's, under ImageNet's terms. Make "
            "or fetch it as docs/data.md says and give its folder with --data-path (or ANML_DATA)."
        )
        raise DataError(message)
    if data_path.is_file():
        return data_path
    tops = [data_path, *(data_path / name for name in _NAMES)]
    found = find_source([top / inner for top in tops for inner in (_INNER, ".")], [folder])
    # Else one archive of everything; a folder of such a name has been looked into.
    found = found or find_source(tops, [_INNER, *_NAMES], archives_only=True)
    if found is None:
        message = (
            f"{data_path}: no Mini-ImageNet here: expected the folders processed_images/train and "
            "processed_images/test (or train and test, or train.tar and test.tar, or mini-imagenet.tar), with a folder "
            "of JPEGs for each class in them. Correct --data-path (or ANML_DATA); docs/data.md says where to get it."
        )
        raise DataError(message)
    return found


def choose_mini_imagenet(classes: list[str], split: Split) -> list[str]:
    """Return the classes of a split among those of a folder or archive: of all splits, or of this one alone."""
    if not any(name.startswith(("train/", "val/", "test/")) for name in classes):
        return classes
    return [name for name in classes if name.startswith(f"{FOLDERS[split]}/")]


# OmniImage (Frati, Traft & Cheney 2023): 1,000 classes of ImageNet, of each the 20 or 100 images most alike, 84x84.
#
# 700 classes are for training, 300 for evaluation. Folders called train and test say which; else the list of the
# evaluation classes that the authors publish, if it lies beside the data; else the names of the classes decide
# (config/image_folder.py).

# In https://github.com/lfrati/OmnImage; it holds the WordNet ids of 300 classes.
CLASS_LIST = "evolved_test_class_names.json"


def find_omniimage(dataset: str, data_path: Path | None) -> Path:
    """Return the folder or archive of OmniImage with as many images per class as the data set has. Raises DataError."""
    count = DATASETS[dataset].examples_per_class
    if data_path is None:
        message = (
            f"{dataset} cannot be downloaded automatically: its images are ImageNet's, under ImageNet's terms. Fetch "
            "it as docs/data.md says and give its folder with --data-path (or ANML_DATA)."
        )
        raise DataError(message)
    if data_path.is_file():
        return data_path
    names = [f"{stem}{joint}{count}" for stem in ("OmnImage84", "OmnImage", "OmniImage") for joint in ("_", "")]
    tops = [data_path, *(data_path / name for name in ("omniimage", "OmniImage", "omnimage", "OmnImage"))]
    found = find_source(tops, names)
    if found is not None:
        return found
    if data_path.name.lower() in {name.lower() for name in names} and data_path.is_dir():
        return data_path
    message = (
        f"{data_path}: no {dataset} here: expected the folder OmnImage84_{count} with a folder of images for each "
        f"class, or OmnImage84_{count}.zip (or .tar). Correct --data-path (or ANML_DATA); docs/data.md says where to "
        "get it."
    )
    raise DataError(message)


def class_list(source: Path) -> Path | None:
    """Return the authors' list of evaluation classes, if it lies in the data's folder or beside it."""
    places = (source / CLASS_LIST, source.parent / CLASS_LIST)
    return next((path for path in places if path.is_file()), None)


def choose_omniimage(classes: list[str], source: Path, split: Split) -> list[str]:
    """Return the classes of a split among all classes of a source. Raises DataError."""
    listed = class_list(source)
    divided = own_split(classes)
    if divided is None and listed is not None:
        evaluation = _read_list(listed)
        divided = ClassSplit(
            train=tuple(name for name in classes if name not in evaluation),
            eval=tuple(name for name in classes if name in evaluation),
        )
    if divided is None:
        divided = split_by_fraction(classes, 0.7)
    return list(getattr(divided, split))


def _read_list(path: Path) -> set[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = (
            f"{path}: cannot be read ({error}). Fetch it again, or remove it to split by the names of the classes."
        )
        raise DataError(message) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        message = f"{path}: expected a list of names of classes. Fetch it again, or remove it."
        raise DataError(message)
    return set(names)


# Data sets that are folders of colour images: Mini-ImageNet, OmniImage, and any folder a user has.
#
# An image is turned upright as its EXIF tag says, made RGB, cut to its central square, and resized by LANCZOS; one that
# has the wanted size already keeps its pixels.


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


def check_shape(request: DataRequest, shape: Sequence[int], source: Path) -> None:
    """Make sure that an array converted before holds the whole data set, unless less is accepted. Raises DataError."""
    facts = DATASETS[request.dataset]
    expected = (facts.classes(request.split), facts.examples_per_class)
    if request.dataset != IMAGES_FOLDER and not request.allow_incomplete and tuple(shape[:2]) != expected:
        raise DataError(_incomplete(request, source, f"{shape[0]} classes of {shape[1]}"))


def find_images(request: DataRequest) -> Path:
    """Return the folder or archive that holds the images of a request. Raises DataError when there is none."""
    path = Path(request.data_path).expanduser().resolve() if request.data_path else None
    if request.dataset == "mini-imagenet":
        return find_mini_imagenet(request.split, path)
    if request.dataset != IMAGES_FOLDER:
        return find_omniimage(request.dataset, path)
    if path is None or not path.is_dir():
        message = f"{path or IMAGES_FOLDER}: there is no such folder; give --data-path a folder of folders of images"
        raise DataError(message)
    return path


def beside(source: Path) -> list[Path]:
    """Return files that decide which images are taken, as OmniImage's list of evaluation classes does."""
    listed = class_list(source)
    return [listed] if listed else []


def _listed_as_named(source: Path) -> dict[str, list[str]]:
    """List a user's folder under the names that the config knows: the folder around all classes is part of them."""
    return {name: [f"{name}/{file}" for file in files] for name, files in list_classes(source).items()}


def _choose(request: DataRequest, classes: list[str], source: Path) -> list[str]:
    if request.dataset == IMAGES_FOLDER:
        return list(request.classes)
    if request.dataset == "mini-imagenet":
        return choose_mini_imagenet(classes, request.split)
    return choose_omniimage(classes, source, request.split)


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


def decode(content: bytes, size: int, where: str) -> bytes:
    """Return the pixels of an image file, uint8 [3, size, size]. Raises DataError that begins with `where`."""
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
