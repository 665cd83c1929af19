"""Checks that need neither model nor data: does the experiment make sense, before anything is submitted."""

import re

from anml.config.binding import nearest, problem
from anml.config.dataset_facts import DATASETS
from anml.config.evaluation import EvalConfig
from anml.config.training import TrainConfig
from anml.config.yaml_source import KeyPath, Source

# Flavors name files and jobs.
_FLAVOR_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


def check_train(config: TrainConfig, source: Source) -> list[str]:
    """Return every problem of a training config and of its evaluations."""
    problems = _check_episode(config, source) + _check_outputs(config, source)
    if config.seeds is not None and len(set(config.seeds)) < max(1, len(config.seeds)):
        problems.append(problem(source, ("seeds",), "must be one or more different seeds"))
    for name, flavor in config.eval.items():
        if not _FLAVOR_NAME.match(name):
            problems.append(problem(source, ("eval", name), "a flavor's name is letters, digits, `-`, `_` and `.`"))
        problems += check_eval(flavor, source, ("eval", name))
        problems += _check_fits_model(config, flavor, source, ("eval", name))
    return problems


def check_eval(config: EvalConfig, source: Source, at: KeyPath) -> list[str]:
    """Return every problem of one evaluation."""
    problems = []
    if config.augment:
        problems.append(problem(source, (*at, "augment"), "augmentation is not available at evaluation; remove it"))
    if config.dataset is None:
        return problems
    facts = DATASETS.get(config.dataset)
    if facts is None:
        allowed = ", ".join(DATASETS)
        message = f"{config.dataset!r} is not a data set; allowed: {allowed}{nearest(config.dataset, DATASETS)}"
        return [*problems, problem(source, (*at, "dataset"), message)]
    if max(config.classes) > facts.eval_classes:
        message = f"{config.dataset} has {facts.eval_classes} evaluation classes, found {max(config.classes)}"
        problems.append(problem(source, (*at, "classes"), message))
    wanted = max(config.train_examples) + max(config.test_examples)
    if wanted > facts.examples_per_class:
        message = f"train_examples + test_examples = {wanted}, but a class of {config.dataset} has "
        problems.append(problem(source, (*at, "train_examples"), message + f"{facts.examples_per_class} examples"))
    return problems


def _check_episode(config: TrainConfig, source: Source) -> list[str]:
    problems = []
    has = config.facts.examples_per_class
    if config.examples_per_class > has:
        message = f"a class of {config.dataset} has {has} examples, found {config.examples_per_class}"
        problems.append(problem(source, ("train_size",), message))
    if config.num_train_classes > config.facts.train_classes:
        message = f"{config.dataset} has {config.facts.train_classes} background classes, found {config.train_classes}"
        problems.append(problem(source, ("train_classes",), message))
    if config.val_size and config.examples_per_class >= has:
        message = f"validation needs examples that training leaves over; set train_size below {has}"
        problems.append(problem(source, ("val_size",), message))
    if config.augment:
        message = f"augmentation is not available for {config.dataset}; remove it"
        problems.append(problem(source, ("augment",), message))
    if config.train_method == "iid":
        return problems
    needed = config.batch_size * config.inner_steps
    if config.sample_method == "single" and needed > config.examples_per_class:
        message = f"batch_size x num_batches = {needed} examples of one class, but train_size is "
        problems.append(problem(source, ("num_batches",), message + str(config.examples_per_class)))
    if config.remember_only and config.remember_size == 0:
        problems.append(problem(source, ("remember_only",), "leaves nothing to learn from when remember_size is 0"))
    return problems


def _check_outputs(config: TrainConfig, source: Source) -> list[str]:
    outputs = config.model_record.num_classes
    if outputs < config.num_train_classes:
        message = f"num_classes is {outputs}, but there are {config.num_train_classes} training classes"
        return [problem(source, ("model_args",), message)]
    return []


def _check_fits_model(config: TrainConfig, flavor: EvalConfig, source: Source, at: KeyPath) -> list[str]:
    problems = []
    outputs = config.model_record.num_classes
    if max(flavor.classes) > outputs:
        message = f"{max(flavor.classes)} classes do not fit the model's {outputs} outputs (model_args: num_classes)"
        problems.append(problem(source, (*at, "classes"), message))
    if flavor.im_size != config.image_shape[1]:
        message = f"the model is trained on {config.image_shape[1]} pixels, found {flavor.im_size}"
        problems.append(problem(source, (*at, "im_size"), message))
    return problems
