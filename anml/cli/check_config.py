"""`check-config`: checks a config against its model and its data, for which torch must be imported.

The launcher runs it as a child process, so that commands on a login node stay quick.
"""

import argparse
import functools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anml.cli.arguments import collecting
from anml.config.image_folder import check_held_out
from anml.config.load import load_train_config
from anml.config.model_args import model_references
from anml.config.training import TrainConfig
from anml.config.vary import TrainingId
from anml.errors import AnmlError

if TYPE_CHECKING:
    from anml.models.meta_model import MetaModel

# No argument of a model is larger: channels, units, classes. Such a model takes at most some 100 MB.
LARGEST_THAT_FITS_ANYWHERE = 1024


def check_config(_: argparse.Namespace) -> None:
    """Check the config on standard input and print what is found as the last line, for `jobs.launch`."""
    import torch

    config = load_train_config(Path("/dev/stdin")).config
    notices: list[str] = []
    problems = find_problems(config, notices)
    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    needs = list(memory_needs(config))
    print(json.dumps({"problems": problems, "notices": notices, "needs": needs, "gpu": gpu}))


def find_problems(config: TrainConfig, notices: list[str] | None = None) -> list[str]:
    """Return what is wrong between the config, the models of its trainings and the data on this machine.

    notices: gets what the user should know of the data.
    """
    problems: list[str] = []
    for training, at in _shapes(config):
        problems += [text + at for text in _model_problems(config.for_training(training))]
    _check_data(config, problems, [] if notices is None else notices)
    for name, added in config.added_checkpoints.items():
        with collecting(problems, f"eval_checkpoints.{name}: "):
            problems += _checkpoint_problems(config, name, Path(added.path))
    return problems


def memory_needs(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Yield what a job of each kind holds at least, by part in bytes, and the weights alone, for each training."""
    from anml.train.memory import of_evaluation, of_training

    groups = config.training_groups
    for training, at in _shapes(config):
        with suppress(AnmlError):  # Which `find_problems` tells.
            alone, together = config.for_training(training), max(1, len(groups.get(training, ())))
            model = _without_values(alone.model, json.dumps(alone.model_args), alone.image_shape)
            weights = {"weights": sum(parameter.nbytes for parameter in model.parameters())}
            parts = {"train": of_training(alone, model, together)}
            evaluations = [of_evaluation(flavor, model) for flavor in alone.eval.values()]
            parts |= {"evaluate": max(evaluations, key=lambda each: sum(each.values()))} if evaluations else {}
            yield from ({"kind": kind, "weights": weights, "parts": each, "at": at} for kind, each in parts.items())


def _shapes(config: TrainConfig) -> Iterator[tuple[TrainingId, str]]:
    """Yield what trainings of the same layers and steps have in common, and how messages name it."""
    for training in dict.fromkeys(training.together for training in config.trainings):
        yield training, f" (of the training with {training.words})" if training.varied else ""


@functools.lru_cache(maxsize=8)  # Small models have values.
def _without_values(name: str, args: str, image_shape: tuple[int, int, int]) -> "MetaModel":
    """Return a model, its arguments as JSON; of a large one the weights take no memory, which this machine may lack."""
    import torch

    from anml.models import build_model

    given = name, json.loads(args), image_shape, 0
    # On `meta` a forward pass, which finds the size of the last map, imports torch's compiler: 1.5 s of every job.
    if max(map(int, re.findall(r"\d+", args)), default=0) <= LARGEST_THAT_FITS_ANYWHERE:
        return build_model(*given)
    try:
        with torch.device("meta"):
            return build_model(*given, initialisation=None)
    except Exception:
        if not model_references(*given[:2]):
            raise
    return build_model(*given)  # A user's code may need values.


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
    import torch

    from anml.evaluate.prepared_run import check_head
    from anml.meta.outer_step import make_schedule, outer_lrs
    from anml.train.iid import make_optimizer

    try:
        model = _without_values(config.model, json.dumps(config.model_args), config.image_shape)
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
            # Weights with values, which a fused optimizer asks for; as many dimensions, for one that asks for two.
            weights = torch.nn.ParameterList(torch.zeros([1] * p.dim()) for p in model.parameters())
            make_schedule(config, make_optimizer(config, weights))
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


def _check_data(config: TrainConfig, problems: list[str], notices: list[str]) -> None:
    """Convert the data now where needed, so that missing data, or too few, are found before jobs wait."""
    import torch

    from anml.data import load_images, notices_of
    from anml.data.episodes import check_run
    from anml.train.loop import training_data

    load = functools.cache(load_images)  # Several flavors have the same images, each of which loading looks at.
    with collecting(problems, "data_path: "):
        training_data(config, torch.device("cpu"))
        notices += notices_of(config.train_request, load(config.train_request))
    with collecting(problems):
        check_held_out(config)
    for name, flavor in config.eval.items():
        flavor_key = "" if flavor.data_path == config.data_path else f"eval.{name}."
        with collecting(problems, f"{flavor_key}data_path: "):
            request = config.eval_request(flavor)
            data = load(request).first_examples(0, flavor.imgs_per_class)
            notices += (text for text in notices_of(request, data) if text not in notices)
            check_run(data, max(flavor.classes), max(flavor.train_examples), max(flavor.test_examples))
