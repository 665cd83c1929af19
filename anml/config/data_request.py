"""Which images a job needs: what a config says of them, enough to find or to make their array file."""

import os
from pathlib import Path
from typing import NamedTuple

from anml.config.dataset_facts import IMAGES_FOLDER, Split, validation_name
from anml.config.evaluation import EvalConfig
from anml.config.image_folder import ClassSplit


class DataRequest(NamedTuple):
    """A split of a data set at a size, as data.load finds or makes it.

    classes, examples: of images-folder, the names of the classes and how many images of each.
    allow_incomplete: accept a copy with fewer (or other) classes and images than the data set has.
    first_class: of the train split, how many classes a training used and an evaluation of the others leaves out.
    """

    dataset: str
    split: Split
    size: int
    data_path: str | None = None
    classes: tuple[str, ...] = ()
    examples: int | None = None
    allow_incomplete: bool = False
    first_class: int = 0

    @property
    def name(self) -> str:
        """What results call these images."""
        return validation_name(self.dataset) if self.first_class else self.dataset


def absolute_path(path: str | None) -> str | None:
    """Return a path that no change of folder changes."""
    return str(Path(path).expanduser().resolve()) if path else None


def data_path_or_default(path: str | None) -> str | None:
    """Return where the copies of data sets are, absolute: the path given, else ANML_DATA, else None (downloaded)."""
    return absolute_path(path or os.environ.get("ANML_DATA"))


def eval_request(
    config: EvalConfig,
    dataset: str,
    size: int,
    data_path: str | None,
    trained_split: ClassSplit | None = None,
    trained_examples: int | None = None,
) -> DataRequest:
    """Return what to load for an evaluation. An images-folder without a split of its own takes the training's."""
    classes, examples = (), None
    if dataset == IMAGES_FOLDER:
        own = config.class_split if isinstance(config.class_split, ClassSplit) else None
        classes = (own or trained_split or ClassSplit()).eval
        examples = config.imgs_per_class if own else trained_examples
    return DataRequest(dataset, "eval", size, data_path, classes, examples, bool(config.allow_incomplete))
