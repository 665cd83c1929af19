"""The data sets, as far as configs and reports must know them before any image is read.

A new data set is a record here and its loader, or a `Dataset` in a user's own file: `dataset: ./cifar_fs.py:CIFAR_FS`.
"""

from typing import Any, Literal, NamedTuple

from anml.errors import ConfigError
from anml.plugins import find_part, load_object

Split = Literal["train", "eval"]
# Of each channel, on the scale of [0, 1].
MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
# Of ImageNet's training images.
IMAGENET: MeanStd = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Dataset(NamedTuple):
    """A data set.

    train_classes, eval_classes: the numbers of background classes and of classes that are never trained on.
    channels: 1 for grey, 3 for colour. default_size: height and width in pixels.
    loader: a function (split, size, data_path) -> uint8 [classes, examples, channels, size, size], where data_path is a
    Path or None; or an `ImageFiles` (data/sources.py); or a reference to one of them, which costs no import until data
    are loaded.
    display_name, noun: what reports call the data set and its examples.
    can_augment: whether crops and flips leave an image what it is (a mirrored character may be another one).
    are_characters: whether augmentation crops them but slightly and mirrors none.
    mean_std: what every batch is normalised by; None leaves pixels in [0, 1].
    aliases: other names in configs, in small letters and without `-` and `_`.
    imagenet_split: the name of the division of ImageNet's classes that the data set has, if its images are ImageNet's.
    needs_counting: whether the user's folder decides which classes there are (config/image_folder.py).
    ignores_data_path: whether the loader alone makes the images.
    """

    train_classes: int
    eval_classes: int
    examples_per_class: int
    channels: int
    default_size: int
    loader: Any
    display_name: str = ""
    noun: str = "images"
    can_augment: bool = False
    mean_std: MeanStd | None = None
    aliases: tuple[str, ...] = ()
    imagenet_split: str | None = None
    needs_counting: bool = False
    ignores_data_path: bool = False
    are_characters: bool = False

    def classes(self, split: Split) -> int:
        """Return the number of classes of a split."""
        return self.train_classes if split == "train" else self.eval_classes

    def load(self) -> Any:
        """Return the loader itself. Raises ConfigError."""
        return load_object(self.loader) if isinstance(self.loader, str) else self.loader


def _photographs(
    train_classes: int, eval_classes: int, examples: int, loader: str, display_name: str, **options: Any
) -> Dataset:
    """Return the record of colour images of 84x84 pixels, normalised as is usual for photographs."""
    return Dataset(
        train_classes, eval_classes, examples, 3, 84, f"anml.data.image_folders:{loader}", display_name,
        can_augment=True, mean_std=IMAGENET, **options,
    )  # fmt: skip


# A user's own folder of folders. Its counts are 0 here: they are known once it has been counted (image_folder.py).
IMAGES_FOLDER = "images-folder"
_OMNIIMAGE = ("omniimage", "omnimage", "oimg")

DATASETS = {
    # Characters are left as the published ANML saw them: not normalised.
    "omniglot": Dataset(
        964, 659, 20, 1, 28, "anml.data.omniglot:OMNIGLOT", "Omniglot", noun="drawings", aliases=("omni",),
        can_augment=True, are_characters=True,
    ),
    "glyphs": Dataset(
        964, 659, 20, 1, 28, "anml.data.glyphs:draw_split", "the built-in glyphs", noun="drawings",
        ignores_data_path=True,
    ),
    "mini-imagenet": _photographs(
        64, 20, 600, "MINI_IMAGENET", "Mini-ImageNet", imagenet_split="mini-imagenet",
        aliases=("miniimagenet", "minimagenet", "inet", "miniinet"),
    ),
    # CIFAR-100's images in the split of Bertinetto et al. 2019.
    "cifar-fs": Dataset(
        64, 20, 600, 3, 32, "anml.data.image_folders:CIFAR_FS", "CIFAR-FS", can_augment=True, mean_std=IMAGENET,
        aliases=("cifarfs",),
    ),
    "omniimage20": _photographs(
        700, 300, 20, "OMNIIMAGE", "OmniImage-20", imagenet_split="omniimage",
        aliases=(*_OMNIIMAGE, "oimg20", "omniimage20", "omnimage20"),
    ),
    "omniimage100": _photographs(
        700, 300, 100, "OMNIIMAGE", "OmniImage-100", imagenet_split="omniimage",
        aliases=(*_OMNIIMAGE, "oimg100", "omniimage100", "omnimage100"),
    ),
    IMAGES_FOLDER: _photographs(
        0, 0, 0, "OWN_FOLDER", "a folder of images", aliases=("imagefolder", "imagesfolder"), needs_counting=True
    ),
}  # fmt: skip

# Ends a data set's name where its held-out background classes are meant: such results are not to be taken for others.
_VALIDATION = "-validation"


def find_dataset(name: str) -> Dataset:
    """Return the data set of a name, or the user's own that a reference means. Raises ConfigError."""
    if name in DATASETS:
        return DATASETS[name]
    dataset = find_part("data set", name, dict.fromkeys(DATASETS, ""))
    if fault := _fault(dataset):
        file, _, variable = name.rpartition(":")
        message = f"{file}: {variable}{fault}"
        raise ConfigError(message)
    return dataset


def _fault(dataset: Any) -> str:
    """Return what is wrong with a user's record, or nothing."""
    if not isinstance(dataset, Dataset):
        return f" must be a Dataset (of anml.config.facts), found {type(dataset).__name__}"
    for key in ("train_classes", "eval_classes", "examples_per_class", "channels", "default_size"):
        value = getattr(dataset, key)
        if type(value) is not int or value < 1:
            return f".{key}: must be a whole number of 1 or more, found {value!r}"
    if not (callable(dataset.loader) or isinstance(dataset.loader, (str, tuple))):
        return f".loader: must be a function (split, size, data_path) or a reference to one, found {dataset.loader!r}"
    counts = [isinstance(values, tuple) and len(values) for values in dataset.mean_std or ()]
    if counts not in ([], [dataset.channels] * 2):
        return f".mean_std: must be two tuples, the means and the deviations of {dataset.channels} channels"
    return ".needs_counting: is for images-folder alone; remove it" if dataset.needs_counting else ""


def dataset_label(name: str) -> str:
    """Return what results call a data set: its name, or of a user's own the name of its record."""
    return name.rpartition(":")[2]


def validation_name(dataset: str) -> str:
    """Return what results call the background classes of a data set that training left out."""
    return dataset + _VALIDATION


def is_validation(name: str) -> bool:
    """Say whether a name in results means background classes that training left out."""
    return name.endswith(_VALIDATION)


def without_validation(name: str) -> str:
    """Return the data set that a name in results is of."""
    return name.removesuffix(_VALIDATION)


def canonical_dataset(name: str, imgs_per_class: object = None) -> str:
    """Return our name of a data set that is known by another one; any other name as it is.

    Of an alias that several data sets share, the one with `imgs_per_class` examples is meant, else the first.
    """
    alias = name.lower().replace("-", "").replace("_", "")
    names = [ours for ours, dataset in DATASETS.items() if alias in dataset.aliases]
    if name in DATASETS or not names:
        return name
    return next((ours for ours in names if DATASETS[ours].examples_per_class == imgs_per_class), names[0])
