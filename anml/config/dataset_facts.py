"""What is known of each data set before it is read: enough to check a config on a login node."""

from typing import NamedTuple


class DatasetFacts(NamedTuple):
    """Counts of the two splits; `train_classes` are the background classes, `eval_classes` those never trained on."""

    train_classes: int
    eval_classes: int
    examples_per_class: int
    channels: int
    default_size: int


DATASETS = {
    "omniglot": DatasetFacts(964, 659, 20, channels=1, default_size=28),
    "glyphs": DatasetFacts(964, 659, 20, channels=1, default_size=28),
}

# Names used in configs of higherANML.
DATASET_ALIASES = {"omni": "omniglot"}
