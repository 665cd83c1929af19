"""Checks of a config that need neither a model nor data, so that they come before anything is submitted.

Each yields (key, what is wrong with it); keys are those of the training, or of one evaluation.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from anml.config.binding import show
from anml.config.evaluation import EvalConfig
from anml.config.facts import IMAGES_FOLDER, Dataset, find_dataset
from anml.config.image_folder import same_data_path
from anml.config.model_args import ClassifierArgs
from anml.config.protocols import PROTOCOLS
from anml.config.training import FewShot, TrainConfig

# Flavors name files and jobs; the training jobs are called train-step-NNNNNN.
_FLAVOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TAKEN_NAMES = ("train",)

Faults = Iterator[tuple[str, str]]


def check_train(config: TrainConfig, has_epochs: bool) -> Faults:
    """Yield every problem of a training config (its evaluations apart). has_epochs: whether it says `epochs`."""
    yield from _check_split(config)
    if config.facts.train_classes == 0:
        yield "class_split", "leaves no class to train on"
        return
    yield from _check_amounts(config)
    if config.method.head:
        yield from _check_few_shot(config)
    elif config.method.is_episodic:
        yield from _check_episode(config)
    elif not has_epochs:
        message = f"is required for train_method: {config.train_method}, where it counts passes over the data "
        yield "epochs", message + "(10 for Omniglot)"
    outputs = config.model_record.num_classes
    if outputs < config.num_labels and not config.method.head:
        of = f" ({config.num_train_classes} by {len(config.rotations)} rotations)" if config.rotations else ""
        yield "model_args", f"num_classes is {outputs}, but there are {config.num_labels} training classes{of}"
    yield from _check_different("seeds", config.seeds or ())
    yield from _check_different("inner_lrs", config.inner_lrs or ())
    yield from _check_different("rotations", config.rotations or ())
    if config.keep_best and config.num_held_out_classes < 2:
        message = "validation tells background classes apart that training leaves out, but it uses "
        message += f"{config.num_train_classes} of {config.facts.train_classes}"
        yield "keep_best", f"{message}; set train_classes to fewer"
    if config.patience and not config.keep_best:
        yield "patience", "counts the validations of keep_best; add keep_best: validation"
    yield from _check_names(config)
    yield from _check_method(config)
    yield from _check_engine(config)
    if config.train_together and len(config.trainings) == 1:
        message = "needs several trainings: set seeds, for example [1, 2, 3], or inner_lrs, for example [0.1, 0.05]"
        yield "train_together", message


def ends_early(config: TrainConfig) -> Faults:
    """Yield a notice if training ends before `epochs` do: it ends with the last model that is evaluated."""
    last = config.checkpoint_steps[-1]
    if last < config.total_steps:
        message = f"training ends at the last of these, {last:,} of {config.total_steps:,} steps; add one beyond the "
        yield "eval_steps", message + "end (any number) to train, and evaluate, to the end"


def check_flavor_name(name: str) -> Faults:
    if name in _TAKEN_NAMES:
        yield name, f"a flavor cannot be called {name}; choose another name"
    elif not _FLAVOR_NAME.fullmatch(name):
        yield name, "a flavor's name is made of letters, digits, `-`, `_` and `.`, and begins with a letter or digit"


def _check_names(config: TrainConfig) -> Faults:
    tags = {training.tag for training in config.trainings}
    for name in config.added_checkpoints:
        if name in tags or re.match(r"(step|more|task|part)-\d", name) or not _FLAVOR_NAME.fullmatch(name):
            yield "eval_checkpoints", f"a checkpoint cannot be called {name}; take letters, digits, `-`, `_` and `.`"


def check_eval(config: EvalConfig, facts: Dataset | None) -> Faults:
    """Yield every problem of one evaluation. `facts` are its data set's, where they are known."""
    if config.augment:
        yield "augment", "augmentation is not available at evaluation; remove it"
    if config.protocol.is_shuffled and isinstance(config.eval_freq, tuple):
        message = f"must be a number of optimizer steps for eval_method: {config.eval_method}; class counts are for "
        yield "eval_freq", message + "sequential"
    if config.engine in ("native", "lanes") and not config.learns_by_adam:
        message = (
            f"{config.engine} learns by Adam alone, without a schedule; use engine: auto, or leave out optimizer, "
        )
        yield "engine", message + "optimizer_args and lr_scheduler"
    if config.lr_scheduler_args and config.lr_scheduler is None:
        yield "lr_scheduler_args", "are without an lr_scheduler that they are for"
    if config.shift_step and config.shifts is None:
        yield "shift_step", "is without shifts, the number of steps; add shifts: 2"
    if config.race and (not config.protocol.learns or len(config.lr) == 1):
        yield "race", "is between several rates (lr) of a protocol that learns; remove it"
    if "representation" in (config.measure or ()) and max(config.classes) * max(config.test_examples) < 4:
        yield "measure", "a representation is measured on four test images or more"
    if config.until and not 1 < config.runs < config.until.at_most:
        message = f"the first runs, {config.runs} (runs), must be two or more, to tell how runs differ, and at_most, "
        yield "until", message + f"{config.until.at_most}, must be more"
    for key in ("classes", "train_examples", "test_examples", "lr", "model"):
        yield from _check_different(key, getattr(config, key) or ())
    for smaller, larger in pairwise(config.stages):
        if smaller.grown(larger) is None:
            yield "grown_from", "each sweep must hold those before it; leave it as `anml add` wrote it"
    yield from _check_split(config)
    if config.dataset and facts:
        yield from _check_sizes(config, config.dataset, facts)


def check_fits_model(flavor: EvalConfig, config: TrainConfig, facts: Dataset | None) -> Faults:
    """Yield why an evaluation cannot be made of the model that a config trains."""
    most, outputs, size = max(flavor.classes), config.model_record.num_classes, config.image_shape[1]
    if most > outputs:
        yield "classes", f"{most} classes do not fit the model's {outputs} outputs (model_args: num_classes)"
    if flavor.im_size not in (None, size):
        yield "im_size", f"the model is trained on {size} pixels, found {flavor.im_size}; leave im_size out"
    channels, is_same = config.image_shape[0], flavor.dataset in (None, config.dataset)
    if flavor.channels not in (None, channels):
        yield "channels", f"the model takes images of {channels}, found {flavor.channels}"
    elif facts and facts.channels != channels and not (flavor.channels or is_same):
        message = f"{flavor.dataset} has images of {facts.channels} channels, the model takes those of {channels}; add "
        yield "dataset", f"{message}channels: {channels} to convert them"
    # A config knows only of the training's images which ones were seen.
    what = "split: validation takes background classes of the training, "
    if flavor.is_validation and flavor.dataset not in (None, config.dataset):
        yield "dataset", f"{what}of {config.dataset}; leave dataset out"
    if flavor.is_validation and not same_data_path(flavor, config):
        yield "data_path", f"{what}from its data_path; leave this one out"
    if isinstance(config.model_record, ClassifierArgs) and config.model_record.has_metric_head:
        yield from _check_metric_head(flavor)


def _check_metric_head(flavor: EvalConfig) -> Faults:
    reason = "needs logits that are linear in the output weights; those of a metric-classifier are similarities"
    if flavor.protocol.solves_head:
        yield "eval_method", f"{flavor.eval_method} (least squares) {reason}; use sequential or iid"
    if flavor.reinit_method == "lstsq":
        yield "reinit_method", f"lstsq (least squares) {reason}; use kaiming"
    if flavor.reinit_method == "zero":
        yield "reinit_method", "zero would make every row of a metric-classifier like nothing; use kaiming"


def overlaps(flavor: EvalConfig, config: TrainConfig) -> Faults:
    """Yield a notice if an evaluation on another data set may meet classes that the model was trained on."""
    evaluated = find_dataset(flavor.dataset).imagenet_split if flavor.dataset else None
    trained = config.facts.imagenet_split
    if evaluated and trained and trained != evaluated:
        message = f"{flavor.dataset} and {config.dataset} share classes of ImageNet: training may have seen some of "
        yield "dataset", message + "them"


def _check_sizes(config: EvalConfig, name: str, facts: Dataset) -> Faults:
    yield from _check_classes(config, name, facts)
    has = facts.examples_per_class
    if (config.imgs_per_class or 0) > has:
        yield "imgs_per_class", f"a class of {name} has {has} examples, found {config.imgs_per_class}"
    has = min(config.imgs_per_class or has, has)
    wanted = max(config.train_examples) + max(config.test_examples)
    if wanted > has:
        message = f"train_examples + test_examples = {wanted}, but a class of {name} has {has} examples"
        yield "train_examples", message


def _check_classes(config: EvalConfig, name: str, facts: Dataset) -> Faults:
    has, wanted = facts.eval_classes, max(config.classes)
    if wanted <= has:
        return
    if not config.is_validation:
        yield "classes", f"{name} has {has} evaluation classes, found {wanted}"
    elif has == 0:
        message = "validation takes the background classes that training leaves out, but it uses all "
        yield "split", message + f"{facts.train_classes}; set train_classes to fewer"
    else:
        message = f"{name} has {has} background classes for validation (train_classes leaves so many), found {wanted}"
        yield "classes", message


def _check_split(config: TrainConfig | EvalConfig) -> Faults:
    if config.class_split is None or config.dataset is None:
        return
    if isinstance(config, EvalConfig) and config.is_validation:
        message = "is for evaluation classes; split: validation takes those that train_classes leaves out; remove it"
        yield "class_split", message
    elif not find_dataset(config.dataset).needs_counting:
        yield "class_split", f"{config.dataset} has a split of its own; class_split is for {IMAGES_FOLDER}"


def _check_amounts(config: TrainConfig) -> Faults:
    facts, has = config.facts, config.facts.examples_per_class
    for key in ("imgs_per_class", "train_size"):
        if (getattr(config, key) or 0) > has:
            yield key, f"a class of {config.dataset} has {has} examples, found {getattr(config, key)}"
        has = min(has, config.images_per_class)
    left = has - config.examples_per_class
    if config.examples_per_class < 1:
        key = "val_examples" if config.train_size is None else "train_size"
        yield key, f"leaves no example of a class to train on, of {has}"
    elif (config.validation_examples or 0) > max(0, left):
        yield "val_examples", f"training leaves {max(0, left)} examples of a class over, found {config.val_examples}"
    if config.num_train_classes > facts.train_classes:
        message = f"{config.dataset} has {facts.train_classes} background classes, found {config.train_classes}"
        yield "train_classes", message
    if config.val_size and not config.method.head and config.examples_per_class >= has:
        yield "val_size", f"validation needs examples that training leaves over; set train_size below {has}"
    if config.augment and not facts.can_augment:
        yield "augment", f"augmentation is not available for {config.dataset}; remove it"


def _check_few_shot(config: TrainConfig) -> Faults:
    few, has = config.few_shot or FewShot(), config.examples_per_class
    if few.shots + few.queries > has:
        message = f"shots + queries = {few.shots + few.queries}, but training has {has} examples of a class; write, "
        yield "few_shot", message + "for example, few_shot: {ways: 20, shots: 5, queries: 5}"
    if few.ways > config.num_labels:
        yield "few_shot", f"ways is {few.ways}, but there are {config.num_labels} training classes"
    known = PROTOCOLS[config.method.head].options
    if wrong := [key for key in few.head_options if key not in known]:
        message = f"{wrong[0]} is not for train_method: {config.train_method}, whose options are {', '.join(known)}"
        yield "few_shot", message
    if few.prior_alpha is not None and few.posterior == "map" and few.prior_alpha <= 0.5:
        yield "few_shot", "prior_alpha must be greater than 0.5 for posterior: map"


def _check_episode(config: TrainConfig) -> Faults:
    needed, has = config.batch_size * config.inner_steps, config.examples_per_class
    tasks = {"single": 1, "sequential": config.tasks or 1}.get(config.sample_method)
    what = f"batch_size x num_batches = {needed // (tasks or 1)}"
    if tasks and needed > tasks * has > 0 and not config.replacement:
        yield "num_batches", f"{what} examples of one class, but training has {has}; or set replacement: true"
    if tasks is None and needed > has * config.num_labels:
        yield "num_batches", f"{what} different examples, but the training classes have {has * config.num_labels}"
    if (tasks or 0) > config.num_labels:
        yield "tasks", f"{tasks} classes follow each other in an episode, but there are {config.num_labels}"
    if config.remember_only and config.remember_size == 0:
        yield "remember_only", "leaves nothing to learn from when remember_size is 0"


def _check_method(config: TrainConfig) -> Faults:
    """Yield keys that are for training on episodes alone."""
    method = f"train_method: {config.train_method}"
    if config.inner_lrs and not config.method.has_inner_loop:
        yield "inner_lrs", f"are for an inner loop of gradient steps, which {method} has not"
    if config.inner.learns_rates and (config.method.keeps_fast_weights or config.method.moves_to_fast_weights):
        message = f"meta-sgd learns rates by the gradient of the meta loss, which {method} has not; use "
        yield "inner_optimizer", message + "train_method: meta or meta-first-order"
    if config.on_divergence == "skip" and config.method.keeps_fast_weights:
        yield "on_divergence", f"skip cannot undo what the inner loop of {method} has done to the weights; remove it"
    if config.outer_lr_scheduler is None and config.outer_lr_scheduler_args is not None:
        yield "outer_lr_scheduler_args", "is without an outer_lr_scheduler that they are for"
    if config.outer_lr_scheduler is not None and not config.method.is_episodic:
        message = f"is for training on episodes; for {method} it is lr_scheduler (by epoch)"
        yield "outer_lr_scheduler", message


def _check_engine(config: TrainConfig) -> Faults:
    """Refuse engines that cannot run, or that would not gather statistics that evaluations use."""
    if config.engine in ("graph", "triton") and config.device == "cpu":
        yield "engine", f"{config.engine} needs a GPU, but device is cpu; use engine: auto"
    is_special = config.engine in ("native", "triton", "sweep", "compiled")
    if config.precision == "bf16-mixed" and is_special:
        yield "precision", f"engine {config.engine} computes in float32 alone; use engine: auto with bf16-mixed"
    if config.method.is_second_order and not config.inner.is_plain and is_special:
        key = "inner_momentum" if config.inner.momentum else "inner_optimizer"
        yield "engine", f"{config.engine} takes plain SGD steps alone, without {key}; use engine: auto"
    if config.precision == "tf32" and "cpu" in (config.device, "cpu" if config.engine == "native" else ""):
        yield "precision", "tf32 needs an NVIDIA GPU, and this config trains on a CPU (device, engine)"
    record = config.model_record
    has_batch_norm = isinstance(record, ClassifierArgs) and record.has_batch_norm
    if config.engine == "reference" and config.method.is_second_order and has_batch_norm:
        message = "reference never updates the running statistics of a BatchNorm (norm_type: bn), which evaluations use"
        yield "engine", f"{message}; use engine: fast, or norm_type: gn or in"


def _check_different(key: str, values: Sequence[float]) -> Faults:
    """Yield every value listed twice: it would be computed twice and weigh double."""
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    yield from ((key, f"{show(value)} is listed twice; remove one") for value in twice)
