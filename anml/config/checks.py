"""Checks of a config that need neither a model nor data, so that they come before anything is submitted."""

import re
from collections.abc import Sequence

from anml.config.binding import problem, show
from anml.config.evaluation import EvalConfig
from anml.config.facts import IMAGES_FOLDER, Dataset, find_dataset
from anml.config.image_folder import same_data_path
from anml.config.model_args import ClassifierArgs
from anml.config.training import TrainConfig
from anml.config.yaml import KeyPath, Source

# Flavors name files and jobs; the training jobs are called train-step-NNNNNN.
_FLAVOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TAKEN_NAMES = ("train",)


def check_train(config: TrainConfig, source: Source) -> list[str]:
    """Return every problem of a training config (its evaluations apart)."""
    problems = _check_split(config, source, ())
    if config.facts.train_classes == 0:
        return [*problems, problem(source, ("class_split",), "leaves no class to train on")]
    problems += _check_episode(config, source) + _check_outputs(config, source)
    problems += _check_different(config.seeds or (), source, ("seeds",))
    problems += _check_different(config.inner_lrs or (), source, ("inner_lrs",))
    if config.inner_lrs and not config.method.is_episodic:
        message = f"are for training on episodes, not for train_method: {config.train_method}"
        problems.append(problem(source, ("inner_lrs",), message))
    return problems + _check_schedule(config, source) + _check_engine(config, source) + _check_together(config, source)


def ends_early(config: TrainConfig, source: Source) -> list[str]:
    """Return a notice if training ends before `epochs` do: it ends with the last model that is evaluated."""
    last = config.checkpoint_steps[-1]
    if last >= config.total_steps:
        return []
    message = f"training ends at the last of these, {last:,} of {config.total_steps:,} steps; add one beyond the end "
    return [problem(source, ("eval_steps",), message + "(any number) to train, and evaluate, to the end")]


def check_flavor_name(name: str, source: Source) -> list[str]:
    """Return what is wrong with the name of a flavor."""
    if name in _TAKEN_NAMES:
        return [problem(source, ("eval", name), f"a flavor cannot be called {name}; choose another name")]
    if not _FLAVOR_NAME.fullmatch(name):
        message = "a flavor's name is made of letters, digits, `-`, `_` and `.`, and begins with a letter or digit"
        return [problem(source, ("eval", name), message)]
    return []


def check_eval(config: EvalConfig, source: Source, at: KeyPath, facts: Dataset | None) -> list[str]:
    """Return every problem of one evaluation. `facts` are its data set's, where they are known."""
    problems = []
    if config.augment:
        problems.append(problem(source, (*at, "augment"), "augmentation is not available at evaluation; remove it"))
    if config.protocol.is_shuffled and isinstance(config.eval_freq, tuple):
        message = f"must be a number of optimizer steps for eval_method: {config.eval_method}; class counts are for "
        message += "sequential"
        problems.append(problem(source, (*at, "eval_freq"), message))
    for key in ("classes", "train_examples", "test_examples", "lr", "model"):
        problems += _check_different(getattr(config, key) or (), source, (*at, key))
    if config.dataset is None:
        return problems
    problems += _check_split(config, source, at)
    return problems + _check_amounts(config, config.dataset, facts, source, at) if facts else problems


def check_fits_model(
    flavor: EvalConfig, config: TrainConfig, facts: Dataset | None, source: Source, at: KeyPath
) -> list[str]:
    """Return why an evaluation cannot be made of the model that a config trains."""
    problems = []
    outputs, size = config.model_record.num_classes, config.image_shape[1]
    if max(flavor.classes) > outputs:
        message = f"{max(flavor.classes)} classes do not fit the model's {outputs} outputs (model_args: num_classes)"
        problems.append(problem(source, (*at, "classes"), message))
    if flavor.im_size not in (None, size):
        message = f"the model is trained on {size} pixels, found {flavor.im_size}; leave im_size out"
        problems.append(problem(source, (*at, "im_size"), message))
    if facts and facts.channels != config.image_shape[0]:
        message = f"{flavor.dataset} has images of {facts.channels} channels, the model is trained on those of "
        problems.append(problem(source, (*at, "dataset"), message + f"{config.dataset}, of {config.image_shape[0]}"))
    return problems + _check_validation(flavor, config, source, at) + _check_head(flavor, config, source, at)


def _check_validation(flavor: EvalConfig, config: TrainConfig, source: Source, at: KeyPath) -> list[str]:
    """Refuse `split: validation` of other images than the training's: a config knows only which of these were seen."""
    if not flavor.is_validation:
        return []
    what, problems = "split: validation takes background classes of the training, ", []
    if flavor.dataset not in (None, config.dataset):
        message = f"{what}of {config.dataset}; leave dataset out"
        problems.append(problem(source, (*at, "dataset"), message))
    if not same_data_path(flavor, config):
        message = f"{what}from its data_path; leave this one out"
        problems.append(problem(source, (*at, "data_path"), message))
    return problems


def _check_head(flavor: EvalConfig, config: TrainConfig, source: Source, at: KeyPath) -> list[str]:
    record = config.model_record
    if not (isinstance(record, ClassifierArgs) and record.has_metric_head):
        return []
    reason = "needs logits that are linear in the output weights; those of a metric-classifier are similarities"
    problems = []
    if flavor.protocol.solves_head:
        message = f"{flavor.eval_method} (least squares) {reason}; use sequential or iid"
        problems.append(problem(source, (*at, "eval_method"), message))
    if flavor.reinit_method == "lstsq":
        message = f"lstsq (least squares) {reason}; use kaiming"
        problems.append(problem(source, (*at, "reinit_method"), message))
    if flavor.reinit_method == "zero":
        message = "zero would make every row of a metric-classifier like nothing; use kaiming"
        problems.append(problem(source, (*at, "reinit_method"), message))
    return problems


def overlaps(flavor: EvalConfig, config: TrainConfig, source: Source, at: KeyPath) -> list[str]:
    """Return a notice if an evaluation on another data set may meet classes that the model was trained on."""
    evaluated = find_dataset(flavor.dataset).imagenet_split if flavor.dataset else None
    trained = config.facts.imagenet_split
    if evaluated is None or trained in (None, evaluated):
        return []
    message = f"{flavor.dataset} and {config.dataset} share classes of ImageNet: training may have seen some of them"
    return [problem(source, (*at, "dataset"), message)]


def _check_amounts(config: EvalConfig, name: str, facts: Dataset, source: Source, at: KeyPath) -> list[str]:
    problems = _check_classes(config, name, facts, source, at)
    has = facts.examples_per_class
    if (config.imgs_per_class or 0) > has:
        message = f"a class of {name} has {has} examples, found {config.imgs_per_class}"
        problems.append(problem(source, (*at, "imgs_per_class"), message))
    has = min(config.imgs_per_class or has, has)
    wanted = max(config.train_examples) + max(config.test_examples)
    if wanted > has:
        message = f"train_examples + test_examples = {wanted}, but a class of {name} has {has} examples"
        problems.append(problem(source, (*at, "train_examples"), message))
    return problems


def _check_classes(config: EvalConfig, name: str, facts: Dataset, source: Source, at: KeyPath) -> list[str]:
    has, wanted = facts.eval_classes, max(config.classes)
    if wanted <= has:
        return []
    if not config.is_validation:
        return [problem(source, (*at, "classes"), f"{name} has {has} evaluation classes, found {wanted}")]
    if has == 0:
        message = (
            "validation takes the background classes that training leaves out, but it uses all "
            f"{facts.train_classes}; set train_classes to fewer"
        )
        return [problem(source, (*at, "split"), message)]
    message = f"{name} has {has} background classes for validation (train_classes leaves so many), found {wanted}"
    return [problem(source, (*at, "classes"), message)]


def _check_split(config: TrainConfig | EvalConfig, source: Source, at: KeyPath) -> list[str]:
    if config.class_split is None or config.dataset is None:
        return []
    if isinstance(config, EvalConfig) and config.is_validation:
        message = "is for evaluation classes; split: validation takes those that train_classes leaves out; remove it"
        return [problem(source, (*at, "class_split"), message)]
    if find_dataset(config.dataset).needs_counting:
        return []
    message = f"{config.dataset} has a split of its own; class_split is for {IMAGES_FOLDER}"
    return [problem(source, (*at, "class_split"), message)]


def _check_episode(config: TrainConfig, source: Source) -> list[str]:
    problems = []
    has = config.facts.examples_per_class
    for key in ("imgs_per_class", "train_size"):
        if (getattr(config, key) or 0) > has:
            message = f"a class of {config.dataset} has {has} examples, found {getattr(config, key)}"
            problems.append(problem(source, (key,), message))
        has = min(has, config.images_per_class)
    if config.num_train_classes > config.facts.train_classes:
        message = f"{config.dataset} has {config.facts.train_classes} background classes, found {config.train_classes}"
        problems.append(problem(source, ("train_classes",), message))
    if config.val_size and config.examples_per_class >= has:
        message = f"validation needs examples that training leaves over; set train_size below {has}"
        problems.append(problem(source, ("val_size",), message))
    if config.augment and not config.facts.can_augment:
        message = f"augmentation is not available for {config.dataset}; remove it"
        problems.append(problem(source, ("augment",), message))
    if not config.method.is_episodic and "epochs" not in source.data:
        message = f"is required for train_method: {config.train_method}, where it counts passes over the data "
        message += "(10 for Omniglot)"
        problems.append(problem(source, ("epochs",), message))
    if not config.method.is_episodic:
        return problems
    needed = config.batch_size * config.inner_steps
    if config.sample_method == "single" and needed > config.examples_per_class:
        message = f"batch_size x num_batches = {needed} examples of one class, but train_size is "
        problems.append(problem(source, ("num_batches",), message + str(config.examples_per_class)))
    available = config.num_train_classes * config.examples_per_class
    if config.sample_method == "uniform" and needed > available:
        message = f"batch_size x num_batches = {needed} different examples, but the training classes have {available}"
        problems.append(problem(source, ("num_batches",), message))
    if config.remember_only and config.remember_size == 0:
        problems.append(problem(source, ("remember_only",), "leaves nothing to learn from when remember_size is 0"))
    return problems


def _check_outputs(config: TrainConfig, source: Source) -> list[str]:
    outputs = config.model_record.num_classes
    if outputs < config.num_train_classes:
        message = f"num_classes is {outputs}, but there are {config.num_train_classes} training classes"
        return [problem(source, ("model_args",), message)]
    return []


def _check_together(config: TrainConfig, source: Source) -> list[str]:
    if not config.train_together or len(config.trainings) > 1:
        return []
    message = "needs several trainings: set seeds, for example [1, 2, 3], or inner_lrs, for example [0.1, 0.05]"
    return [problem(source, ("train_together",), message)]


def _check_schedule(config: TrainConfig, source: Source) -> list[str]:
    at = ("outer_lr_scheduler",)
    if config.outer_lr_scheduler is None and config.outer_lr_scheduler_args is not None:
        return [problem(source, (f"{at[0]}_args",), "is without an outer_lr_scheduler that they are for")]
    if config.outer_lr_scheduler is not None and not config.method.is_episodic:
        message = f"is for training on episodes; for train_method: {config.train_method} it is lr_scheduler (by epoch)"
        return [problem(source, at, message)]
    return []


def _check_engine(config: TrainConfig, source: Source) -> list[str]:
    """Refuse engines that cannot run, or that would not gather statistics that evaluations use."""
    if config.engine == "graph" and config.device == "cpu":
        return [problem(source, ("engine",), "graph needs a GPU, but device is cpu; use engine: auto")]
    record = config.model_record
    if config.engine != "reference" or not config.method.is_second_order:
        return []
    if not (isinstance(record, ClassifierArgs) and record.has_batch_norm):
        return []
    message = "reference never updates the running statistics of a BatchNorm (norm_type: bn), which evaluations use"
    return [problem(source, ("engine",), f"{message}; use engine: fast, or norm_type: gn or in")]


def _check_different(values: Sequence[float], source: Source, key_path: KeyPath) -> list[str]:
    """Return a problem for every value listed twice: it would be computed twice and weigh double."""
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    return [problem(source, key_path, f"{show(value)} is listed twice; remove one") for value in twice]
