"""OmniImage (Frati, Traft & Cheney 2023): 1,000 classes of ImageNet, of each the 20 or 100 images most alike, 84x84.

700 classes are for training, 300 for evaluation. Folders called train and test say which; else the list of the
evaluation classes that the authors publish, if it lies beside the data; else the names of the classes decide
(config/image_folder.py).
"""

import json
from pathlib import Path

from anml.config.dataset_facts import DATASETS, Split
from anml.config.image_folder import ClassSplit, own_split, split_by_fraction
from anml.data.image_source import find_source
from anml.errors import DataError

# In https://github.com/lfrati/OmnImage; it holds the WordNet ids of 300 classes.
CLASS_LIST = "evolved_test_class_names.json"


def find(dataset: str, data_path: Path | None) -> Path:
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


def choose(classes: list[str], source: Path, split: Split) -> list[str]:
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
