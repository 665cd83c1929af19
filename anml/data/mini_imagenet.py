"""Mini-ImageNet (Vinyals et al. 2016, split of Ravi & Larochelle 2017): 64, 16 and 20 classes of 600 images.

Training uses `train`, evaluation `test`; `val` is left alone. Images are 84x84 RGB JPEGs, a folder per WordNet class.
"""

from pathlib import Path

from anml.config.dataset_facts import Split
from anml.data.image_source import find_source
from anml.errors import DataError

FOLDERS = {"train": "train", "eval": "test"}
_NAMES = ("mini-imagenet", "mini_imagenet", "miniimagenet", "MiniImageNet")
_INNER = "processed_images"


def find(split: Split, data_path: Path | None) -> Path:
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


def choose(classes: list[str], split: Split) -> list[str]:
    """Return the classes of a split among those of a folder or archive: of all splits, or of this one alone."""
    if not any(name.startswith(("train/", "val/", "test/")) for name in classes):
        return classes
    return [name for name in classes if name.startswith(f"{FOLDERS[split]}/")]
