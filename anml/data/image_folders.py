"""Data sets that are folders of colour images: Mini-ImageNet, OmniImage, and any folder of a user's own.

An image is turned upright as its EXIF tag says, made RGB, cut to its central square, and resized by LANCZOS; one that
has the wanted size already keeps its pixels.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anml.config.evaluation import DataRequest
from anml.config.facts import find_dataset
from anml.config.image_folder import list_classes, own_split, split_by_fraction
from anml.data.layouts import find_below
from anml.data.pickles import SUFFIXES
from anml.data.sources import ImageFiles, find_source, list_images
from anml.errors import DataError

# Mini-ImageNet (Vinyals et al. 2016, split of Ravi & Larochelle 2017): 64, 16 and 20 classes of 600 images. Training
# uses `train`, evaluation `test`; `val` is left alone. Images are 84x84 RGB JPEGs, a folder per WordNet class.
FOLDERS = {"train": "train", "eval": "test"}
_NAMES = ("mini-imagenet", "mini_imagenet", "miniimagenet", "MiniImageNet", "miniImageNet", "mini_imagenet_full_size")
_INNER = "processed_images"
# Folders of these names may also be Omniglot's: they count inside a folder of Mini-ImageNet's name alone.
_OTHER_FOLDERS = {"train": "images_background", "eval": "images_evaluation"}
# As other repositories keep a split: one pickle, or a list of files and classes beside a folder of all images.
_PICKLES = {
    "mini-imagenet": {
        "train": ("mini-imagenet-cache-train.pkl", "miniImageNet_category_split_train_phase_train.pickle"),
        "eval": ("mini-imagenet-cache-test.pkl", "miniImageNet_category_split_test.pickle"),
    },
    "cifar-fs": {"train": ("CIFAR_FS_train.pickle",), "eval": ("CIFAR_FS_test.pickle",)},
}
_LISTED = "images"


def _find_mini_imagenet(request: DataRequest) -> Path:
    """Return the folder or archive that holds a split of Mini-ImageNet. Raises DataError."""
    data_path = _given_path(request)
    # A pickle holds one split: the other would be read from it too.
    if data_path.is_file() and data_path.suffix not in SUFFIXES:
        return data_path
    expected = "the folders processed_images/train and processed_images/test (or train and test, or train.tar and "
    expected += "test.tar, or mini-imagenet.tar), with a folder of JPEGs for each class in them; or images/ with "
    expected += "train.csv and test.csv; or mini-imagenet-cache-train.pkl and -test.pkl; or images_background and "
    expected += "images_evaluation in a folder mini-imagenet"
    return find_below(data_path, request, _search_mini_imagenet, expected)


def _search_mini_imagenet(request: DataRequest, data_path: Path) -> Path | None:
    folder, tops = FOLDERS[request.split], [data_path, *(data_path / name for name in _NAMES)]
    source = find_source([top / inner for top in tops for inner in (_INNER, ".")], [folder])
    # Otherwise one archive holds both splits; folders of such names were searched above.
    source = source or _find_other(request, tops) or find_source(tops, [_INNER, *_NAMES], archives_only=True)
    return source or find_source([top for top in tops if top.name in _NAMES], [_OTHER_FOLDERS[request.split]])


def _find_other(request: DataRequest, tops: Sequence[Path]) -> Path | None:
    """Return the pickle of a split, or the folder of all images beside its list, if there is one."""
    names = _PICKLES[request.dataset][request.split]
    listed = [top / _LISTED for top in tops if (top / _LISTED).is_dir() and _list_of(request, top / _LISTED).is_file()]
    pickles = [top / name for top in tops for name in names if (top / name).is_file()]
    return next(iter(pickles + listed), None)


def _list_of(request: DataRequest, images: Path) -> Path:
    return images.parent / f"{FOLDERS[request.split]}.csv"


def _lists_beside(source: Path) -> list[Path]:
    """Return the lists of all splits that lie beside a folder of all images."""
    return sorted(source.parent.glob("*.csv")) if source.name == _LISTED else []


def _read_classes(path: Path) -> dict[str, list[str]]:
    """Return the files of each class of a list with the columns filename and label. Raises DataError."""
    classes: dict[str, list[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                classes.setdefault(row["label"], []).append(row["filename"])
        return {name: sorted(classes[name]) for name in sorted(classes)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        message = f"{path}: expected a table with the columns filename and label ({error!r}). Fetch it again."
        raise DataError(message) from error


def _find_cifar_fs(request: DataRequest) -> Path:
    """Return the pickle of a split of CIFAR-FS, or the folder with its classes. Raises DataError."""
    expected = "CIFAR_FS_train.pickle and CIFAR_FS_test.pickle, or the folders meta-train and meta-test, or the "
    expected += "authors' folder cifar100 with data and splits/bertinetto"
    return find_below(_given_path(request), request, _search_cifar_fs, expected)


def _search_cifar_fs(request: DataRequest, data_path: Path) -> Path | None:
    tops = [data_path, *(data_path / name for name in ("cifar-fs", "CIFAR-FS", "cifar_fs", "CIFAR_FS"))]
    source = _find_other(request, tops) or find_source(tops, [f"meta-{FOLDERS[request.split]}", FOLDERS[request.split]])
    wholes = [top / inner / "data" for top in tops for inner in (".", "cifar100")]
    return source or next((whole for whole in wholes if _split_file(request, whole).is_file()), None)


def _split_file(request: DataRequest, whole: Path) -> Path:
    """Return the authors' list of the classes of a split, for the folder of all classes."""
    return whole.parent / "splits" / "bertinetto" / f"{FOLDERS[request.split]}.txt"


def _lists_of_cifar_fs(source: Path) -> list[Path]:
    return sorted((source.parent / "splits" / "bertinetto").glob("*.txt"))


def _select_cifar_fs(request: DataRequest, source: Path) -> list[list[str]]:
    """Choose the classes of a split: all of a folder, or those that the authors' list names. Raises DataError."""
    classes, listed = list_images(source), _split_file(request, source)
    if listed.is_file():
        names = listed.read_text(encoding="utf-8").split()
        if missing := [name for name in names if name not in classes]:
            message = f"{listed}: {source} has no class {missing[0]} (and {len(missing) - 1} more). Fetch it again."
            raise DataError(message)
        classes = {name: classes[name] for name in sorted(names)}
    return _select_whole(request, source, classes)


def _select_mini_imagenet(request: DataRequest, source: Path) -> list[list[str]]:
    """Choose the images of a split in a folder or archive of all splits, or of this one alone. Raises DataError."""
    if source.name == _LISTED and _list_of(request, source).is_file():
        return _select_whole(request, source, _read_classes(_list_of(request, source)))
    classes = list_images(source)
    if any(name.startswith(("train/", "val/", "test/")) for name in classes):
        classes = {name: classes[name] for name in classes if name.startswith(f"{FOLDERS[request.split]}/")}
    return _select_whole(request, source, classes)


# OmniImage (Frati, Traft & Cheney 2023): 1,000 classes of ImageNet, of each the 20 or 100 images most alike, 84x84.
# 700 classes are for training, 300 for evaluation. Folders called train and test say which; else this list of the
# WordNet ids of 300 classes (of https://github.com/lfrati/OmnImage), if it lies beside the data; else the names decide.
CLASS_LISTS = ("evolved_test_class_names.json", "test_class_names.json")


def _find_omniimage(request: DataRequest) -> Path:
    """Return the folder or archive of OmniImage with as many images per class as the data set has. Raises DataError."""
    data_path, name = _given_path(request), f"OmnImage84_{find_dataset(request.dataset).examples_per_class}"
    if data_path.is_file():
        return data_path
    expected = f"the folder {name} with a folder of images for each class, or {name}.zip (or .tar)"
    return find_below(data_path, request, _search_omniimage, expected)


def _search_omniimage(request: DataRequest, data_path: Path) -> Path | None:
    count = find_dataset(request.dataset).examples_per_class
    names = [f"{stem}{joint}{count}" for stem in ("OmnImage84", "OmnImage", "OmniImage") for joint in ("_", "")]
    tops = [data_path, *(data_path / name for name in ("omniimage", "OmniImage", "omnimage", "OmnImage"))]
    is_itself = data_path.name.lower() in {name.lower() for name in names} and data_path.is_dir()
    return find_source(tops, names) or (data_path if is_itself else None)


def _class_lists(source: Path) -> list[Path]:
    """Return the authors' lists of evaluation classes that lie in the data's folder or beside it; the first counts."""
    paths = [folder / name for folder in (source, source.parent) for name in CLASS_LISTS]
    return [path for path in paths if path.is_file()][:1]


def _select_omniimage(request: DataRequest, source: Path) -> list[list[str]]:
    """Choose the images of a split among all classes of a source. Raises DataError."""
    classes = list_images(source)
    lists, split = _class_lists(source), own_split(classes)
    if split is None and lists:
        listed = _read_list(lists[0])
        chosen = {name: files for name, files in classes.items() if (name in listed) == (request.split == "eval")}
    else:
        names = getattr(split or split_by_fraction(classes, 0.7), request.split)
        chosen = {name: classes[name] for name in names}
    return _select_whole(request, source, chosen)


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


def _find_own_folder(request: DataRequest) -> Path:
    folder = request.folder
    if folder is None or not folder.is_dir():
        message = (
            f"{folder or request.dataset}: there is no such folder; --data-path takes a folder of folders of images"
        )
        raise DataError(message)
    return folder


def _select_own_folder(request: DataRequest, source: Path) -> list[list[str]]:
    """Choose the images that a config names: the folder around all classes is part of their names. Raises DataError."""
    classes = list_classes(source)
    if missing := [name for name in request.classes if name not in classes]:
        message = f"{source}: no images in {missing[0]} (and {len(missing) - 1} more classes) that the config names"
        raise DataError(message)
    named = {name: [f"{name}/{file}" for file in classes[name]] for name in request.classes}
    return _first_examples(request, source, named)


def _given_path(request: DataRequest) -> Path:
    """Return the data path of a data set that no program may download. Raises DataError without one."""
    if request.folder is None:
        is_imagenet = find_dataset(request.dataset).imagenet_split
        terms = "its images are ImageNet's, under its terms" if is_imagenet else "no address of it is known"
        message = f"{request.dataset} cannot be downloaded automatically: {terms}. "
        message += "Make or fetch it as docs/data.md says and give its folder with --data-path (or ANML_DATA)."
        raise DataError(message)
    return request.folder


def _select_whole(request: DataRequest, source: Path, classes: dict[str, list[str]]) -> list[list[str]]:
    """Choose the images of a split, which must be complete unless the request accepts less. Raises DataError."""
    chosen, facts = _first_examples(request, source, classes), find_dataset(request.dataset)
    if not request.allow_incomplete:
        if len(classes) != facts.classes(request.split):
            raise _incomplete(request, source, f"{len(classes)} classes")
        if wrong := [name for name, files in classes.items() if len(files) != facts.examples_per_class]:
            more = f" (and {len(wrong) - 1} such classes more)" if wrong[1:] else ""
            raise _incomplete(request, source, f"{len(classes[wrong[0]])} images in {wrong[0]}{more}")
    return chosen


def _first_examples(request: DataRequest, source: Path, classes: dict[str, list[str]]) -> list[list[str]]:
    """Choose the first images of each class: as many as asked for, or as the smallest class has. Raises DataError."""
    counts = {name: len(files) for name, files in classes.items()}
    smallest = min(counts, key=lambda name: counts[name], default="")
    examples = request.examples or counts.get(smallest, 0)
    if counts and counts[smallest] < examples:
        message = f"{source}: {smallest} has {counts[smallest]} images, expected {examples}. Put back what is missing."
        raise DataError(message)
    if not examples:
        message = f"{source}: no images of {request.dataset} here. See docs/data.md for the layout that is expected."
        raise DataError(message)
    return [files[:examples] for files in classes.values()]


def _check_shape(request: DataRequest, shape: Sequence[int]) -> None:
    """Make sure that an array converted before holds the whole data set, unless less is accepted. Raises DataError."""
    facts = find_dataset(request.dataset)
    expected = (facts.classes(request.split), facts.examples_per_class)
    if not request.allow_incomplete and tuple(shape[:2]) != expected:
        raise _incomplete(request, request.data_path, f"{shape[0]} classes of {shape[1]}")


def _incomplete(request: DataRequest, source: object, counts: str) -> DataError:
    facts = find_dataset(request.dataset)
    return DataError(
        f"{source}: expected {facts.classes(request.split)} {request.split} classes of {request.dataset} with "
        f"{facts.examples_per_class} images each, found {counts}. Fetch the data again; or, to work with what there is "
        "and get results that cannot be compared with others', set allow_incomplete: true"
    )


def decode(content: bytes, size: int, where: str) -> bytes:
    """Return the pixels of an image file, uint8 [3, size, size]. Raises DataError that begins with `where`."""
    # Converting happens once; loading the array later needs no image library.
    from PIL import Image, ImageOps, UnidentifiedImageError

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
        # Pillow's own message names an object in memory.
        cause = "in no known format" if isinstance(error, UnidentifiedImageError) else error
        message = f"{where}: not an image that can be read ({cause}). Replace this file, or fetch the data again."
        raise DataError(message) from error


MINI_IMAGENET = ImageFiles(_find_mini_imagenet, _select_mini_imagenet, decode, _lists_beside, _check_shape)
CIFAR_FS = ImageFiles(_find_cifar_fs, _select_cifar_fs, decode, _lists_of_cifar_fs, _check_shape)
OMNIIMAGE = ImageFiles(_find_omniimage, _select_omniimage, decode, _class_lists, _check_shape)
OWN_FOLDER = ImageFiles(_find_own_folder, _select_own_folder, decode)
