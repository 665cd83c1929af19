"""What is known of each data set before it is read: enough to check a config on a login node."""

from typing import Literal, NamedTuple

Split = Literal["train", "eval"]


class DatasetFacts(NamedTuple):
    """Counts of the two splits; `train_classes` are the background classes, `eval_classes` those never trained on.

    can_augment: whether crops and flips leave an image what it is (a mirrored character may be another one).
    """

    train_classes: int
    eval_classes: int
    examples_per_class: int
    channels: int
    default_size: int
    can_augment: bool = False

    def classes(self, split: Split) -> int:
        """Return the number of classes of a split."""
        return self.train_classes if split == "train" else self.eval_classes


# A user's own folder of folders. Its counts are 0 here: they are known once it has been counted (image_folder.py).
IMAGES_FOLDER = "images-folder"

DATASETS = {
    "omniglot": DatasetFacts(964, 659, 20, channels=1, default_size=28),
    "glyphs": DatasetFacts(964, 659, 20, channels=1, default_size=28),
    "mini-imagenet": DatasetFacts(64, 20, 600, channels=3, default_size=84, can_augment=True),
    "omniimage20": DatasetFacts(700, 300, 20, channels=3, default_size=84, can_augment=True),
    "omniimage100": DatasetFacts(700, 300, 100, channels=3, default_size=84, can_augment=True),
    IMAGES_FOLDER: DatasetFacts(0, 0, 0, channels=3, default_size=84, can_augment=True),
}

# Ends a data set's name where its held-out background classes are meant: such results are not to be taken for others.
_VALIDATION = "-validation"

# Made of the same pictures: a model of one has seen classes that another evaluates.
OF_IMAGENET = ("mini-imagenet", "omniimage20", "omniimage100")

# Names used in configs of higherANML and elsewhere, in small letters and without `-` and `_`.
DATASET_ALIASES = {
    "omni": "omniglot",
    **dict.fromkeys(("miniimagenet", "minimagenet", "inet", "miniinet"), "mini-imagenet"),
    **dict.fromkeys(("omniimage", "omnimage", "oimg", "oimg20", "omniimage20", "omnimage20"), "omniimage20"),
    **dict.fromkeys(("oimg100", "omniimage100", "omnimage100"), "omniimage100"),
    **dict.fromkeys(("imagefolder", "imagesfolder"), IMAGES_FOLDER),
}
# Of these names the images per class say which data set is meant.
_WITHOUT_COUNT = ("omniimage", "omnimage", "oimg")


def validation_name(dataset: str) -> str:
    """Return what results call the background classes of a data set that training left out."""
    return dataset + _VALIDATION


def is_validation(name: str) -> bool:
    """Say whether a name that results have is one of held-out background classes."""
    return name.endswith(_VALIDATION)


def without_validation(name: str) -> str:
    """Return the data set that a name in results is of."""
    return name.removesuffix(_VALIDATION)


def canonical_dataset(name: str, imgs_per_class: object = None) -> str:
    """Return our name of a data set that is known by another one; any other name as it is."""
    plain = name.lower().replace("-", "").replace("_", "")
    if plain in _WITHOUT_COUNT and imgs_per_class == DATASETS["omniimage100"].examples_per_class:
        return "omniimage100"
    return name if name in DATASETS else DATASET_ALIASES.get(plain, name)
