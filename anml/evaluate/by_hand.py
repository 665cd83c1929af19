"""Evaluation of any checkpoints by hand: loaded, checked against the config, and printed."""

import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from anml.checkpoints import ModelCard, load_model
from anml.checkpoints.import_pth import load_pth
from anml.config.evaluation import ClassSplit, DataRequest, EvalConfig, data_path_or_default, eval_request
from anml.config.facts import Dataset, find_dataset
from anml.config.image_folder import check_unseen, fill_in_flavor
from anml.config.profile import Device
from anml.data.class_images import ClassImages
from anml.errors import ConfigError
from anml.evaluate.job import accuracy_lines, load_data
from anml.evaluate.prepared_run import check_head
from anml.evaluate.sweep import run_sweep, sweep_trajectories
from anml.jobs.job import JobContext
from anml.machine import prepare_device
from anml.models.meta_model import MetaModel, select_names
from anml.results import ClassRow, Origin, ResultRow, write_results


def evaluate_by_hand(
    context: JobContext, configs: Sequence[EvalConfig], checkpoints: Sequence[Path], device: Device, output: Path | None
) -> bool:
    """Evaluate any checkpoints and print their accuracy; write the results only where they are asked for.

    configs: the same evaluation, once for each data set.
    """
    compute_on = prepare_device("auto", device, configs[0].deterministic)
    candidates = [c for config in configs for c in load_models(config, checkpoints, compute_on)]
    if note := _different_classes(candidates):
        print(note, file=sys.stderr)
    rows: list[ResultRow] = []
    class_rows: list[ClassRow] = []
    origins: list[Origin] = []
    for number, (model, card, data, config) in enumerate(candidates):
        first, points = len(rows), sweep_trajectories(config)
        before, total = number * len(points), len(candidates) * len(points)
        heading = f"{card.display_name}, step {card.step}: " if len(checkpoints) > 1 else ""
        progress = functools.partial(_progress, context, before, total)
        say = functools.partial(print, heading, sep="", file=sys.stderr)
        for done, result in enumerate(run_sweep(model, card, config, "eval", data, points, progress, say), 1):
            rows += result.rows
            class_rows += result.class_rows
            origins += [(card.display_name, card.step, card.seed, data.name)] * len(result.class_rows)
            context.progress(before + done, total, "trajectories")
            if context.stop():
                return False
        for line in accuracy_lines(rows[first:]):
            print(f"{heading}{line}")
    if output is not None:
        write_results(output, rows, class_rows, origins if len(candidates) > 1 else ())
    return True


def _progress(context: JobContext, before: int, total: int, part: float) -> None:
    context.progress(before + part, total, "trajectories")


class LoadedModel(NamedTuple):
    """A checkpoint to be evaluated by hand, and on what."""

    model: MetaModel
    card: ModelCard
    data: ClassImages
    config: EvalConfig


def load_models(config: EvalConfig, checkpoints: Sequence[Path], device: torch.device) -> list[LoadedModel]:
    """Load everything and check that it fits, before the first of hours of work. Raises ConfigError."""
    loaded = [_load_checkpoint(path, config, device) for path in checkpoints]
    cards = tell_apart([card for _, card in loaded], checkpoints)
    problems: list[str] = []
    candidates = []
    images: dict[DataRequest, ClassImages] = {}  # Checkpoints of one training share theirs: one copy on the device.
    for path, (model, _), card in zip(checkpoints, loaded, cards, strict=True):
        dataset = config.dataset or card.dataset
        found = _misfits(model, card, config, find_dataset(dataset)) + _validation_problems(card, config, dataset)
        problems += [f"{path}: {text}" for text in found]
        if not found:
            request = _request_by_hand(config, dataset, card)
            if request not in images:
                images[request] = load_data(config, request, card, device)
            candidates.append(LoadedModel(model, card, images[request], config))
    if problems:
        raise ConfigError(problems)
    return candidates


def _different_classes(candidates: Sequence[LoadedModel]) -> str:
    """Return a note where models are validated on different classes, each on what its own training left out."""
    counts = sorted({card.train_classes or 0 for _, card, _, config in candidates if config.is_validation})
    if len(counts) < 2:
        return ""
    first = ", ".join(map(str, counts))
    return f"note: these models left out different classes (all after the first {first}): do not compare their accuracy"


def _load_checkpoint(path: Path, config: EvalConfig, device: torch.device) -> tuple[MetaModel, ModelCard]:
    if path.is_file():
        return load_pth(path, config.dataset, config.im_size, device)
    return load_model(path, device)


def tell_apart(cards: Sequence[ModelCard], paths: Sequence[Path]) -> list[ModelCard]:
    """Return the cards with their paths, as far as these differ, in names that several of the same step share."""
    keys = [(card.display_name, card.step, card.seed) for card in cards]
    places = [path.resolve() for path in paths]
    common = os.path.commonpath(places) if len(places) > 1 else ""
    return [
        card
        if keys.count(key) == 1
        else replace(card, display_name=f"{card.display_name} ({place.relative_to(common)})")
        for card, key, place in zip(cards, keys, places, strict=True)
    ]


def _misfits(model: MetaModel, card: ModelCard, config: EvalConfig, facts: Dataset | None) -> list[str]:
    """Return why a model cannot be evaluated as the config says."""
    channels, size, outputs = card.image_shape[0], card.image_shape[1], model.head.out_features
    problems = []
    if config.im_size not in (None, size):
        problems.append(f"im_size {config.im_size}: this model was trained on {size} pixels")
    if facts and facts.channels != channels:
        problems.append(f"this model takes images of {channels} channels, those of the data set have {facts.channels}")
    if max(config.classes) > outputs:
        problems.append(f"{max(config.classes)} classes do not fit the {outputs} outputs of this model")
    for key, selectors in (("opt_params", config.opt_params), ("reinit_params", config.reinit_params)):
        try:
            select_names(model, selectors)
        except ConfigError as error:
            problems.append(f"{key}: {error}")
    return problems or _head_problems(model, config)


def _head_problems(model: MetaModel, config: EvalConfig) -> list[str]:
    try:
        check_head(model, config)
    except ConfigError as error:
        return [str(error)]
    return []


def _validation_problems(card: ModelCard, config: EvalConfig, dataset: str) -> list[str]:
    """Return why a model cannot be evaluated on background classes: only its card knows which it has not seen."""
    if not config.is_validation:
        return []
    if dataset != card.dataset:
        return [f"split: validation takes background classes of the training, of {card.dataset}, found {dataset}"]
    if card.train_classes is None:
        return [
            "split: validation needs background classes that training left out; this model was trained on all, or its "
            "card does not say (a .pth, an earlier version, allow_incomplete). Train one with train_classes: N; "
            "without split: validation this one is evaluated on the evaluation classes"
        ]
    if config.allow_incomplete and not find_dataset(dataset).needs_counting:
        return ["split: validation finds the classes by their places, in a complete copy; leave allow_incomplete out"]
    has = len(card.class_split["train"]) if card.class_split else find_dataset(dataset).train_classes
    left = has - card.train_classes
    if max(config.classes) > left:
        return [f"classes: this model has {left} background classes for validation, found {max(config.classes)}"]
    return []


def _request_by_hand(config: EvalConfig, dataset: str, card: ModelCard) -> DataRequest:
    """Return what to load. A folder of the user's own is split as in the model's training, if that had one too."""
    size, data_path = card.image_shape[1], data_path_or_default(config.data_path)
    trained = ClassSplit.model_validate(card.class_split) if card.class_split else None
    if config.is_validation and card.train_classes:
        names, examples = (trained.train, card.imgs_per_class) if trained else ((), None)
        return DataRequest(dataset, "train", size, data_path, names, examples, first_class=card.train_classes)
    if find_dataset(dataset).needs_counting:
        config = config.model_copy(update={"dataset": dataset})
        if config.class_split is not None or trained is None:
            config, notices = fill_in_flavor(config, None)
            print("\n".join(notices), end="\n" if notices else "")
        if isinstance(config.class_split, ClassSplit):
            check_unseen(config.class_split, trained)
    return eval_request(config, dataset, size, data_path, trained, card.imgs_per_class)
