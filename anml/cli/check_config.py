"""`check-config`: checks a config against its model and its data, for which torch must be imported.

The launcher runs it as a child process, so that commands on a login node stay quick.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from anml.cli.arguments import collecting
from anml.config.image_folder import check_held_out
from anml.config.load import load_train_config
from anml.config.training import TrainConfig
from anml.errors import AnmlError

if TYPE_CHECKING:
    from anml.models.meta_model import MetaModel


def check_config(_: argparse.Namespace) -> None:
    """Check the config on standard input and print {"problems": [...]} as the last line."""
    config = load_train_config(Path("/dev/stdin")).config
    print(json.dumps({"problems": find_problems(config)}))


def find_problems(config: TrainConfig) -> list[str]:
    """Return what is wrong between the config, the models of its trainings and the data on this machine."""
    problems: list[str] = []
    for training in dict.fromkeys(training.together for training in config.trainings):
        at = f" (of the training with {training.words})" if training.varied else ""
        problems += [text + at for text in _model_problems(config.for_training(training))]
    _check_data(config, problems)
    for name, added in config.added_checkpoints.items():
        with collecting(problems, f"eval_checkpoints.{name}: "):
            problems += _checkpoint_problems(config, name, Path(added.path))
    return problems


def _checkpoint_problems(config: TrainConfig, name: str, path: Path) -> list[str]:
    """Return why a checkpoint of another training cannot be evaluated as this experiment's are. Raises AnmlError."""
    import torch

    from anml.evaluate.by_hand import misfits_of
    from anml.evaluate.job import load_checkpoint

    problems = []
    for flavor, evaluation in config.eval.items():
        if evaluation.choose:
            continue
        model, card = load_checkpoint(path, evaluation, config.dataset, torch.device("cpu"))
        reasons = misfits_of(model, card, evaluation, evaluation.dataset or config.dataset)
        if evaluation.is_validation and (card.train_classes or 0) > config.num_train_classes:
            reasons.append(f"it was trained on {card.train_classes} classes, those held out here among them")
        seen = set((card.class_split or {}).get("train", ())) & set(config.eval_request(evaluation).classes)
        if seen and not evaluation.is_validation:
            reasons.append(f"it was trained on {len(seen)} of the classes to evaluate")
        problems += [f"eval_checkpoints.{name}: {flavor}: {reason}" for reason in reasons]
    return problems


def _model_problems(config: TrainConfig) -> list[str]:
    from anml.evaluate.prepared_run import check_head
    from anml.meta.outer_step import make_schedule, outer_lrs
    from anml.models import build_model
    from anml.train.iid import make_optimizer

    try:
        model = build_model(config.model, config.model_args, config.image_shape, config.seed)
    except AnmlError as error:
        return [str(error)]
    problems = name_problems(config, model)
    for name, flavor in config.eval.items() if not problems else ():
        with collecting(problems, f"eval.{name}: "):
            check_head(model, flavor)
    with collecting(problems):
        if config.method.is_episodic:
            outer_lrs(config)
        else:
            make_schedule(config, make_optimizer(config, model))
    return problems


def name_problems(config: TrainConfig, model: "MetaModel") -> list[str]:
    """Return what is wrong with the parameters that a config names."""
    from anml.models.meta_model import check_output_layer, select_names

    keys = [("inner_params", config.inner_params), ("outer_params", config.outer_params)]
    for name, flavor in config.eval.items():
        keys += [(f"eval.{name}.opt_params", flavor.opt_params), (f"eval.{name}.reinit_params", flavor.reinit_params)]
    problems: list[str] = []
    for key, selectors in keys:
        with collecting(problems, f"{key}: "):
            select_names(model, selectors)
    with collecting(problems, "output_layer: "):
        check_output_layer(model, config.output_layer)
    return problems


def _check_data(config: TrainConfig, problems: list[str]) -> None:
    """Convert the data now where needed, so that missing data, or too few, are found before jobs wait."""
    import torch

    from anml.data import load_images
    from anml.data.episodes import check_run
    from anml.train.loop import training_data

    load = functools.cache(load_images)  # Several flavors have the same images, each of which loading looks at.
    with collecting(problems, "data_path: "):
        training_data(config, torch.device("cpu"))
    with collecting(problems):
        check_held_out(config)
    for name, flavor in config.eval.items():
        flavor_key = "" if flavor.data_path == config.data_path else f"eval.{name}."
        with collecting(problems, f"{flavor_key}data_path: "):
            data = load(config.eval_request(flavor)).first_examples(0, flavor.imgs_per_class)
            check_run(data, max(flavor.classes), max(flavor.train_examples), max(flavor.test_examples))
