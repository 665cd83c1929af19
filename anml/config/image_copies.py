"""Images that lie in training and in evaluation classes: a model would be tested on what it was trained on.

Compared are files of the same name, as copying leaves them: most images of a large folder share their size with some
other, so that going by size alone would read nearly all of it.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from anml.errors import ConfigError

# Name and size of a file: what copies have in common.
_Likeness = tuple[str, int]


def check_copies(
    folder: Path, train: Mapping[str, Sequence[str]], evaluation: Mapping[str, Sequence[str]], at: str
) -> None:
    """Make sure that no image of a training class lies in an evaluation class too, by their files' names per class.

    Raises ConfigError whose problem begins with a dotted key below `at`.
    """
    if found := list(_copies(folder, train, evaluation)):
        original, copy = found[0]
        message = (
            f"{at}data_path: {folder}: images of evaluation classes are in training classes too "
            f"({len(found)} of them): {copy} is {original}; remove them, or leave these classes out with "
            "class_split: {train: [...], eval: [...]}"
        )
        raise ConfigError(message)


def _copies(
    folder: Path, train: Mapping[str, Sequence[str]], evaluation: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """Yield (image of a training class, the same image of an evaluation class), as paths inside the folder."""
    shared = set().union(*train.values()) & set().union(*evaluation.values())
    trained, evaluated = _by_likeness(folder, train, shared), _by_likeness(folder, evaluation, shared)
    for alike in (likeness for likeness in evaluated if likeness in trained):
        originals = {_digest(folder / path): path for path in trained[alike]}
        for path in evaluated[alike]:
            if original := originals.get(_digest(folder / path)):
                yield original, path


def _by_likeness(folder: Path, classes: Mapping[str, Sequence[str]], names: set[str]) -> dict[_Likeness, list[str]]:
    """Return paths of the images that have one of these names. Those that cannot be read are left to their reader."""
    found: dict[_Likeness, list[str]] = {}
    for path, name in ((f"{label}/{name}", name) for label in classes for name in classes[label] if name in names):
        try:
            size = os.stat(f"{folder}/{path}").st_size  # Strings: a Path for each would take longer than the rest.
        except OSError:
            continue
        if size:
            found.setdefault((name, size), []).append(path)
    return found


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return os.fsencode(path)  # Like no other.
