"""Folders of images as classes (`dataset: images-folder`): which there are, which train and which evaluate.

A class is a folder that holds images, at any depth; its name is its path, such as `cats/siamese`. Nothing is decoded
here. Loading a config fills in the names of the classes and the number of their images, counted once: a config.yml
that names them reproduces its run, however the folder grows, and jobs that read it count nothing.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from anml.config.evaluation import ClassSplit, ClassSplitKey, EvalConfig, folder_facts
from anml.config.facts import IMAGES_FOLDER, Dataset, find_dataset
from anml.config.training import TrainConfig
from anml.errors import ConfigError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Names of folders that split a data set, in any case of letters; of several, the first counts. If a name is missing
# here, `Train/cat` and `Test/cat` are two classes, and a model may be tested on what it was trained on.
TRAIN_FOLDERS = ("train", "training", "background")
EVAL_FOLDERS = ("test", "testing", "eval", "evaluation", "val", "valid", "validation")
DEFAULT_FRACTION = 0.7
# What few-shot repositories append to a character's name for its rotations: a_rot090, a-rot90, a/rot270, a_rotated_180.
_ROTATION = re.compile(r"[/ _.-]rot(?:ated|ation)?[ _-]?0*(?:0|90|180|270)(?:deg)?$", re.IGNORECASE)
_SHOWN_NAMES = 3


class FolderClasses(NamedTuple):
    """The classes that are used of a folder, by split; how many images of each; and notices for the user."""

    split: ClassSplit
    examples: int
    notices: list[str]


def count_folder(
    data_path: str | None,
    class_split: ClassSplitKey | None,
    imgs_per_class: int | None,
    at: str = "",
    default_fraction: float = DEFAULT_FRACTION,
) -> FolderClasses:
    """Return what is used of a folder. Raises ConfigError whose problems begin with a dotted key below `at`.

    Without `class_split`, the folder's own split counts, or else `default_fraction` of the classes is for training.
    """
    if data_path is None:
        message = f"{IMAGES_FOLDER} needs the path of a folder with one folder of images per class"
        raise _error(at, "data_path", message)
    folder = _resolved(data_path)
    classes = list_classes(folder)
    counts = {name: len(files) for name, files in classes.items()}
    if not counts:
        what = "no class folders here" if folder.is_dir() else "there is no such folder"
        raise _error(at, "data_path", f"{folder}: {what}; expected one folder per class, with its images in it")
    split = _split(counts, class_split, default_fraction, at)
    _check_distinct(split, folder, at)
    used = _with_enough(split, counts, imgs_per_class, at)
    used.notices.extend(_rotated(used.split.train, used.split.eval, at))
    train = {name: classes[name][: used.examples] for name in used.split.train}
    evaluation = {name: classes[name][: used.examples] for name in used.split.eval}
    check_copies(folder, train, evaluation, at)
    return used


def _error(at: str, key: str, message: str) -> ConfigError:
    return ConfigError(f"{at}{key}: {message}")


def list_classes(folder: Path) -> dict[str, list[str]]:
    """Return the image files of each class below a folder, by name of the class; everything is sorted."""
    classes = {}
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not (name.startswith((".", "__")) or _is_loop(path, name))]
        images = sorted(name for name in files if is_image(name))
        if images and Path(path) != folder:
            classes[Path(path).relative_to(folder).as_posix()] = images
    return dict(sorted(classes.items()))


def _is_loop(path: str, name: str) -> bool:
    """Say whether a folder is a link to one that it lies in."""
    link = os.path.join(path, name)
    return os.path.islink(link) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(link))


def is_image(name: str) -> bool:
    """Say whether a file is an image, going by its name (macOS leaves `._name.jpg` beside some)."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def own_split(classes: Iterable[str]) -> ClassSplit | None:
    """Return the split that folders called train and test make (None without). Classes in other folders are unused."""
    tops: dict[str, list[str]] = {}
    for name in classes:
        tops.setdefault(name.partition("/")[0].lower(), []).append(name)
    train = next((tops[name] for name in TRAIN_FOLDERS if name in tops), None)
    evaluation = next((tops[name] for name in EVAL_FOLDERS if name in tops), None)
    return ClassSplit(train=tuple(train), eval=tuple(evaluation)) if train and evaluation else None


def split_by_fraction(classes: Iterable[str], fraction: float) -> ClassSplit:
    """Return a split with a fraction of the classes for training, both parts sorted by name.

    Which ones depends on the names alone: the first classes in order of their names' SHA-256. That is as good as a
    shuffle, while alphabetical neighbours are often alike. Neither part is empty, unless the fraction is 0 or 1.
    """
    shuffled = sorted(classes, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = round(fraction * len(shuffled))
    if 0 < fraction < 1:
        count = min(max(count, 1), len(shuffled) - 1)
    return ClassSplit(train=tuple(sorted(shuffled[:count])), eval=tuple(sorted(shuffled[count:])))


def _split(counts: dict[str, int], class_split: ClassSplitKey | None, default_fraction: float, at: str) -> ClassSplit:
    folder_split = own_split(counts)
    if class_split is None and folder_split:
        if twice := _twice(name.partition("/")[2] for name in (*folder_split.train, *folder_split.eval)):
            message = f"its folders for training and evaluation hold the same classes ({_some(twice)}), but evaluation "
            message += "needs classes that training has not seen; give the path of one of these folders"
            raise _error(at, "data_path", message)
        return folder_split
    if class_split is None or isinstance(class_split, (int, float)):
        if folder_split:
            message = "the folder is split by its own train and evaluation folders; leave it out"
            raise _error(at, "class_split", message)
        return split_by_fraction(counts, default_fraction if class_split is None else class_split)
    split = class_split
    if not isinstance(split, ClassSplit):
        split = ClassSplit(train=split, eval=tuple(name for name in counts if name not in split))
    _check_names(split, counts, at)
    return split


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _check_names(split: ClassSplit, counts: dict[str, int], at: str) -> None:
    named = (*split.train, *split.eval)
    if not named:
        raise _error(at, "class_split", "names no class")
    if unknown := [name for name in dict.fromkeys(named) if name not in counts]:
        message = f"not in the folder: {_some(unknown)}; there are: {_some(list(counts))}"
        raise _error(at, "class_split", message)
    if twice := _twice(named):
        message = f"given twice: {_some(twice)}; a class is for training or for evaluation"
        raise _error(at, "class_split", message)


def _check_distinct(split: ClassSplit, folder: Path, at: str) -> None:
    """Refuse one folder under two names: a model could be evaluated on what it was trained on."""
    first: dict[str, str] = {}
    for name in (*split.train, *split.eval):
        other = first.setdefault(os.path.realpath(folder / name), name)
        if other != name:
            message = f"{folder}: {other} and {name} are one folder, by a link; remove the link, or leave one of them "
            raise _error(at, "data_path", f"{message}out with class_split: {{train: [...], eval: [...]}}")


def _rotated(train: Iterable[str], evaluation: Iterable[str], at: str) -> Iterator[str]:
    """Yield a notice if evaluation classes are rotations of training classes, going by their names."""
    trained = {_unrotated(name): name for name in train}
    pairs = [(name, trained[_unrotated(name)]) for name in evaluation if _unrotated(name) in trained]
    if pairs:
        name, original = pairs[0]
        message = f"{len(pairs)} evaluation classes seem to be rotations of training classes, such as {name} of "
        message += (
            f"{original}: the model has seen them turned. Put all rotations of a class on one side: class_split: "
        )
        yield f"{at}class_split: {message}{{train: [...], eval: [...]}}"


def _unrotated(name: str) -> str:
    """Return the name of a class without its rotation, and without the folder that splits the data set."""
    top, _, rest = name.partition("/")
    return _ROTATION.sub("", rest if rest and top.lower() in (*TRAIN_FOLDERS, *EVAL_FOLDERS) else name)


def _with_enough(split: ClassSplit, counts: dict[str, int], wanted: int | None, at: str) -> FolderClasses:
    """Keep the classes that have enough images: `wanted`, or as many as the smallest class has."""
    used = {name: counts[name] for name in (*split.train, *split.eval)}
    examples = wanted or min(used.values())
    kept = ClassSplit(
        train=tuple(name for name in split.train if counts[name] >= examples),
        eval=tuple(name for name in split.eval if counts[name] >= examples),
    )
    notices = []
    if wanted is None and max(used.values()) > examples:
        smallest = min(used, key=lambda name: used[name])
        notices.append(
            f"{at}imgs_per_class: classes have {examples} ({smallest}) to {max(used.values())} images; every class "
            f"gives its first {examples}. With imgs_per_class: N, smaller classes are left out instead"
        )
    if left := [name for name in used if counts[name] < examples]:
        if len(left) == len(used):
            message = f"no class has {examples} images; the largest has {max(used.values())}"
            raise _error(at, "imgs_per_class", message)
        notices.append(
            f"{at}imgs_per_class: {len(left)} classes with fewer than {examples} are left out: {_some(left)}"
        )
    return FolderClasses(kept, examples, notices)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {len(names) - _SHOWN_NAMES} more" if names[_SHOWN_NAMES:] else "")


def fill_in_training(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Return a training config with its classes named, and notices. Raises ConfigError."""
    if not _is_uncounted(config):
        return config, []
    classes = count_folder(config.data_path, config.class_split, config.imgs_per_class)
    return config.model_copy(update={"class_split": classes.split, "imgs_per_class": classes.examples}), classes.notices


def fill_in_flavor(
    flavor: EvalConfig, training: TrainConfig | None, at: str = "", unseen: bool = True
) -> tuple[EvalConfig, list[str]]:
    """Return an evaluation config with its classes named, unless they are the training's, and notices.

    unseen: the model has seen no class of another folder, so that all of them are for evaluation where nothing says
    otherwise. Raises ConfigError.
    """
    if flavor.is_validation or not _is_uncounted(flavor):
        return flavor, []
    same = training if training and _same_folder(flavor, training) else None
    if flavor.class_split is None and (same or not unseen):
        return flavor, []
    data_path, examples = flavor.data_path, flavor.imgs_per_class
    if same:
        data_path, examples = same.data_path, examples or same.imgs_per_class
    classes = count_folder(data_path, flavor.class_split, examples, at, default_fraction=0)
    if same:
        check_unseen(classes.split, same.class_split, at)
        _check_unseen_images(classes, same, at)
        trained = same.class_split.train if isinstance(same.class_split, ClassSplit) else ()
        classes.notices.extend(_rotated(trained, classes.split.eval, at))
    elif training and (seen := _seen(classes.split, training.class_split)):
        what = f"{len(seen)} of its classes have names of training classes, such as {seen[0]}"
        advice = "if they are the same, name the others: class_split: {eval: [...]}"
        classes.notices.append(f"{at}data_path: {what}; {advice}")
    return flavor.model_copy(update={"class_split": classes.split, "imgs_per_class": classes.examples}), classes.notices


def _seen(split: ClassSplit, trained: object) -> list[str]:
    return sorted(set(split.eval) & set(trained.train)) if isinstance(trained, ClassSplit) else []


def check_unseen(split: ClassSplit, trained: object, at: str = "") -> None:
    """Make sure that no class of an evaluation was trained on. Raises ConfigError."""
    if seen := _seen(split, trained):
        raise _error(at, "class_split", f"the model is trained on {len(seen)} of these classes, such as {seen[0]}")


def _check_unseen_images(evaluated: FolderClasses, training: TrainConfig, at: str) -> None:
    """Make sure that no image of an evaluation was trained on under another class's name. Raises ConfigError."""
    if isinstance(training.class_split, ClassSplit):
        folder = _resolved(str(training.data_path))
        classes = list_classes(folder)
        train = {name: classes.get(name, [])[: training.imgs_per_class] for name in training.class_split.train}
        check_copies(folder, train, {name: classes[name][: evaluated.examples] for name in evaluated.split.eval}, at)


def check_held_out(config: TrainConfig) -> None:
    """Make sure that no image of a background class held out for validation was trained on. Raises ConfigError.

    Reads the folder, which has many classes: once at a launch, not in every job.
    """
    if not isinstance(config.class_split, ClassSplit) or not any(f.is_validation for f in config.eval.values()):
        return
    folder, names = _resolved(str(config.data_path)), config.class_split.train
    classes = list_classes(folder)
    used = {name: classes.get(name, [])[: config.imgs_per_class] for name in names}
    train, held_out = names[: config.num_train_classes], names[config.num_train_classes :]
    check_copies(folder, {name: used[name] for name in train}, {name: used[name] for name in held_out}, "")


def flavor_facts(flavor: EvalConfig, training: TrainConfig | None) -> Dataset | None:
    """Return the facts of an evaluation's data set, or None where they are not known. Raises ConfigError.

    With `split: validation`, the classes to evaluate on are those that training leaves out (by hand: at most all).
    """
    dataset = find_dataset(flavor.dataset) if flavor.dataset else None
    if flavor.is_validation and training is not None:
        is_same = flavor.dataset == training.dataset
        return training.facts._replace(eval_classes=training.num_held_out_classes) if is_same else None
    if dataset is None or not dataset.needs_counting:
        return dataset._replace(eval_classes=dataset.train_classes) if dataset and flavor.is_validation else dataset
    if flavor.is_validation:
        return None
    if isinstance(flavor.class_split, ClassSplit) and flavor.imgs_per_class:
        return folder_facts(flavor.class_split, flavor.imgs_per_class)
    return training.facts if training and _same_folder(flavor, training) else None


def same_data_path(flavor: EvalConfig, training: TrainConfig) -> bool:
    """Say whether an evaluation takes its images from where the training does."""
    ours, theirs = flavor.data_path, training.data_path
    return ours is None or (theirs is not None and _resolved(ours) == _resolved(theirs))


def _is_uncounted(config: TrainConfig | EvalConfig) -> bool:
    """Say whether a config is on a folder whose classes it does not name yet."""
    is_named = isinstance(config.class_split, ClassSplit) and config.imgs_per_class is not None
    return config.dataset is not None and find_dataset(config.dataset).needs_counting and not is_named


def _same_folder(flavor: EvalConfig, training: TrainConfig) -> bool:
    is_counted = find_dataset(training.dataset).needs_counting and training.data_path is not None
    return is_counted and same_data_path(flavor, training)


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()


# The names of image files, by class.
_Files = Mapping[str, Sequence[str]]
# Name and size of a file: what copies have in common.
_Likeness = tuple[str, int]


def check_copies(folder: Path, train: _Files, evaluation: _Files, at: str) -> None:
    """Make sure that no image of a training class lies in an evaluation class too: a model would be tested on it.

    Only files of the same name are compared, as copying leaves them: most images of a large folder share their size
    with some other, so that a comparison by size alone would read nearly all of it. Raises ConfigError.
    """
    if copies := list(_copies(folder, train, evaluation)):
        original, copy = copies[0]
        message = f"{folder}: images of evaluation classes are in training classes too ({len(copies)} of them): "
        message += f"{copy} is {original}; remove them, or leave these classes out with "
        raise _error(at, "data_path", message + "class_split: {train: [...], eval: [...]}")


def _copies(folder: Path, train: _Files, evaluation: _Files) -> Iterator[tuple[str, str]]:
    """Yield (image of a training class, the same image of an evaluation class), as paths inside the folder."""
    shared = set().union(*train.values()) & set().union(*evaluation.values())
    trained, evaluated = _by_likeness(folder, train, shared), _by_likeness(folder, evaluation, shared)
    for alike in (likeness for likeness in evaluated if likeness in trained):
        originals = {_digest(folder / path): path for path in trained[alike]}
        for path in evaluated[alike]:
            if original := originals.get(_digest(folder / path)):
                yield original, path


def _by_likeness(folder: Path, classes: _Files, names: set[str]) -> dict[_Likeness, list[str]]:
    """Return paths of the images that have one of these names; those that cannot be read are left out."""
    paths: dict[_Likeness, list[str]] = {}
    for path, name in ((f"{label}/{name}", name) for label in classes for name in classes[label] if name in names):
        try:
            size = os.stat(f"{folder}/{path}").st_size  # A Path for each would take longer than the rest.
        except OSError:
            continue
        if size:
            paths.setdefault((name, size), []).append(path)
    return paths


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return os.fsencode(path)  # It equals no digest.
