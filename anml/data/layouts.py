"""What an error says of a folder that a data set was not found in: what lies there, and where it should be put."""

from collections.abc import Callable
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

from anml.config.evaluation import DataRequest
from anml.config.image_folder import is_image
from anml.errors import DataError

# Names of files and folders by which a data set is known, in small letters.
_SIGNS = {
    "omniglot": ("images_background*", "images_evaluation*", "*alphabet_of_the_magi*", "omniglot*"),
    "mini-imagenet": ("*mini*imagenet*", "processed_images*", "images_background", "images_evaluation"),
    "cifar-fs": ("cifar*fs*", "cifar*100*", "meta-train", "bertinetto"),
    "omniimage20": ("omn*mage*20*",),
    "omniimage100": ("omn*mage*100*",),
}
_LEVELS, _MOST_FOLDERS, _SHOWN = 3, 100, 5

# Returns where a request's data lie below a folder, if they do.
Search = Callable[[DataRequest, Path], Path | None]


def find_below(data_path: Path, request: DataRequest, search: Search, expected: str, advice: str = "") -> Path:
    """Return what `search` finds below a data path. Raises DataError that says what lies there instead."""
    if source := search(request, data_path):
        return source
    message = f"{data_path}: no {request.dataset} here: expected {expected}. "
    message += f"{_what_is_there(data_path, request, search)} Correct --data-path (or ANML_DATA){advice}; "
    message += "docs/data.md says what is understood."
    raise DataError(message)


def _what_is_there(data_path: Path, request: DataRequest, search: Search) -> str:
    """Say what the names in a folder look like, and what to do with it."""
    if not data_path.is_dir():
        return f"There is {'only this file' if data_path.exists() else 'no such folder'}."
    folders = _folders(data_path)
    paths = [path for folder in folders for path in sorted(folder.glob("*"))]
    known = [(path, dataset) for path in paths for dataset in _SIGNS if _is_of(path, dataset)]
    ours = {path for path, dataset in known if dataset == request.dataset}
    holding = [folder for folder in folders[1:] if _holds(folder, request, search)]
    for folder in holding:
        if folder in ours or any(path.parent == folder for path in ours):
            return f"{folder} looks like {request.dataset}: give that folder."
    if known:
        path = min(known, key=lambda pair: pair[0] not in ours)[0]  # What is looked for comes first.
        names = " or ".join(dataset for other, dataset in known if other == path)
        if path in ours:
            return f"{path} looks like {names}, but a part is missing, or it is not arranged or packed as expected."
        return f"{path} looks like {names}: write dataset: {names}, or put {request.dataset} there too."
    if any(is_image(path.name) and path.parent != data_path for path in paths):
        more = f"; if those in {holding[0]} are {request.dataset}, give that folder" if holding else ""
        return f"These look like folders of images: for classes of your own write dataset: images-folder{more}."
    names = sorted(path.name for path in data_path.glob("*"))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"It holds {', '.join(names[:_SHOWN])}{more}." if names else "It is empty."


def _holds(folder: Path, request: DataRequest, search: Search) -> bool:
    try:
        return search(request, folder) is not None
    except (OSError, DataError):  # It may not be ours to read.
        return False


def _folders(data_path: Path) -> list[Path]:
    """Return a folder and those below it, level by level, as many as are searched quickly."""
    folders, level = [data_path], [data_path]
    for _ in range(_LEVELS - 1):
        paths = chain.from_iterable(sorted(folder.glob("*")) for folder in level if not folder.is_symlink())
        level = [path for path in paths if path.is_dir()][:_MOST_FOLDERS]
        folders += level
    return folders


def _is_of(path: Path, dataset: str) -> bool:
    return any(fnmatch(path.name.lower(), sign) for sign in _SIGNS[dataset])
