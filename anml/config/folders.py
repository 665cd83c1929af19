"""Fills in, for configs that use images-folder, which classes and how many images of each: counted once, then kept.

A config.yml that names them reproduces its run, however the folder grows; jobs that read it count nothing.
"""

from pathlib import Path

from anml.config.evaluation import EvalConfig
from anml.config.facts import DATASETS, IMAGES_FOLDER, DatasetFacts
from anml.config.image_folder import ClassSplit, FolderClasses, check_copies, count_folder, folder_facts, list_classes
from anml.config.training import TrainConfig
from anml.errors import ConfigError


def fill_in_training(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """Return a training config with its classes named, and notices. Raises ConfigError."""
    if config.dataset != IMAGES_FOLDER or _is_filled_in(config):
        return config, []
    found = count_folder(config.data_path, config.class_split, config.imgs_per_class)
    return config.model_copy(update={"class_split": found.split, "imgs_per_class": found.examples}), found.notices


def fill_in_flavor(
    flavor: EvalConfig, training: TrainConfig | None, at: str = "", unseen: bool = True
) -> tuple[EvalConfig, list[str]]:
    """Return an evaluation config with its classes named, unless they are the training's, and notices.

    unseen: the model has seen no class of another folder, so that all of them are for evaluation where nothing says
    otherwise. Raises ConfigError.
    """
    if flavor.dataset != IMAGES_FOLDER or flavor.is_validation or _is_filled_in(flavor):
        return flavor, []
    if training is not None and _same_folder(flavor, training):
        if flavor.class_split is None:
            return flavor, []
        data_path, examples = training.data_path, flavor.imgs_per_class or training.imgs_per_class
    elif flavor.class_split is None and not unseen:
        return flavor, []
    else:
        data_path, examples = flavor.data_path, flavor.imgs_per_class
    found = count_folder(data_path, flavor.class_split, examples, at, default_fraction=0)
    if training is not None and _same_folder(flavor, training):
        check_unseen(found.split, training.class_split, at)
        _check_unseen_images(found, training, at)
    elif training is not None:
        found.notices.extend(_alike(found.split, training.class_split, at))
    return flavor.model_copy(update={"class_split": found.split, "imgs_per_class": found.examples}), found.notices


def _alike(split: ClassSplit, trained: object, at: str) -> list[str]:
    """Return a notice if another folder has classes by the names of trained ones: it may be a copy of the same."""
    seen = sorted(set(split.eval) & set(trained.train)) if isinstance(trained, ClassSplit) else []
    if not seen:
        return []
    what = f"{len(seen)} of its classes have names of training classes, such as {seen[0]}"
    return [f"{at}data_path: {what}; if they are the same, name the others: class_split: {{eval: [...]}}"]


def check_unseen(split: ClassSplit, trained: object, at: str = "") -> None:
    """Make sure that no class of an evaluation was trained on. Raises ConfigError."""
    seen = sorted(set(split.eval) & set(trained.train)) if isinstance(trained, ClassSplit) else []
    if seen:
        message = f"{at}class_split: the model is trained on {len(seen)} of these classes, such as {seen[0]}"
        raise ConfigError(message)


def _check_unseen_images(found: FolderClasses, training: TrainConfig, at: str) -> None:
    """Make sure that no image of an evaluation was trained on under another class's name. Raises ConfigError."""
    if isinstance(training.class_split, ClassSplit):
        folder = _resolved(str(training.data_path))
        classes = list_classes(folder)
        train = {name: classes.get(name, [])[: training.imgs_per_class] for name in training.class_split.train}
        check_copies(folder, train, {name: classes[name][: found.examples] for name in found.split.eval}, at)


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


def flavor_facts(flavor: EvalConfig, training: TrainConfig | None) -> DatasetFacts | None:
    """Return the facts of an evaluation's data set, or None where they are not known.

    With `split: validation`, the classes to evaluate on are those that training leaves out (by hand: at most all).
    """
    if flavor.is_validation:
        return _validation_facts(flavor, training)
    if flavor.dataset != IMAGES_FOLDER:
        return DATASETS.get(str(flavor.dataset))
    if isinstance(flavor.class_split, ClassSplit) and flavor.imgs_per_class:
        return folder_facts(flavor.class_split, flavor.imgs_per_class)
    return training.facts if training is not None and _same_folder(flavor, training) else None


def _validation_facts(flavor: EvalConfig, training: TrainConfig | None) -> DatasetFacts | None:
    if training is None:
        facts = DATASETS.get(str(flavor.dataset)) if flavor.dataset != IMAGES_FOLDER else None
        return facts._replace(eval_classes=facts.train_classes) if facts else None
    if flavor.dataset != training.dataset:
        return None
    return training.facts._replace(eval_classes=training.num_held_out_classes)


def same_data_path(flavor: EvalConfig, training: TrainConfig) -> bool:
    """Say whether an evaluation takes its images from where the training does."""
    if flavor.data_path is None:
        return True
    return training.data_path is not None and _resolved(flavor.data_path) == _resolved(training.data_path)


def _is_filled_in(config: TrainConfig | EvalConfig) -> bool:
    return isinstance(config.class_split, ClassSplit) and config.imgs_per_class is not None


def _same_folder(flavor: EvalConfig, training: TrainConfig) -> bool:
    if training.dataset != IMAGES_FOLDER or training.data_path is None:
        return False
    return same_data_path(flavor, training)


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()
