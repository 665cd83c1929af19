"""What an error says of a folder that a data set was not found in: what lies there, and where it should be put."""

from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

from anml.config.image_folder import is_image
from anml.errors import DataError

# Names of files and folders by which a data set is known, in small letters.
_SIGNS = {
    "omniglot": ("images_background*", "images_evaluation*", "*alphabet_of_the_magi*", "omniglot*.zip"),
    "mini-imagenet": ("mini-imagenet-cache-*", "miniimagenet_category_split_*", "processed_images*"),
    "cifar-fs": ("cifar_fs_*", "meta-train", "bertinetto"),
    "omniimage": ("omn*mage84_*", "*test_class_names.json"),
}
_LEVELS, _MOST_FOLDERS, _SHOWN = 3, 100, 5


def not_found(data_path: Path, dataset: str, display_name: str, expected: str, advice: str = "") -> DataError:
    """Return the error of a data set that is not in a folder."""
    message = f"{data_path}: no {display_name} here: expected {expected}. {_what_is_there(data_path, dataset)} "
    return DataError(f"{message}Correct --data-path (or ANML_DATA){advice}; docs/data.md says what is understood.")


def _what_is_there(data_path: Path, dataset: str) -> str:
    """Say what the names in a folder look like, and what to do with it."""
    if not data_path.is_dir():
        return f"There is {'only this file' if data_path.exists() else 'no such folder'}."
    level, known, images = [data_path], list[tuple[Path, str]](), list[Path]()
    for _ in range(_LEVELS):
        paths = sorted(chain.from_iterable(folder.glob("*") for folder in level))
        known += [(path, other) for path in paths for other in _SIGNS if _is_of(path, other)]
        images += [path for path in paths if is_image(path.name) and path.parent != data_path]
        level = [path for path in paths if path.is_dir() and not path.is_symlink()][:_MOST_FOLDERS]
    known.sort(key=lambda pair: not dataset.startswith(pair[1]))  # A stable sort: what is looked for comes first.
    if known:
        path, other = known[0]
        return f"{path} looks like {other}: {_advice(path, other, data_path, dataset)}."
    if images:
        return "These look like folders of images: for classes of your own write dataset: images-folder."
    names = sorted(path.name for path in data_path.glob("*"))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"It holds {', '.join(names[:_SHOWN])}{more}." if names else "It is empty."


def _is_of(path: Path, dataset: str) -> bool:
    return any(fnmatch(path.name.lower(), sign) for sign in _SIGNS[dataset])


def _advice(path: Path, other: str, data_path: Path, dataset: str) -> str:
    if not dataset.startswith(other):
        return f"write that dataset, or put {dataset} there too"
    is_deeper = path.parent != data_path
    return f"give the folder that it is in, {path.parent}" if is_deeper else "a part is there; put the rest beside it"
