"""`python -m anml check-config`: what can only be checked with torch at hand. Reads a config, answers in JSON.

Run by the launcher as a child process, so that login-node commands stay quick.
"""

import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from anml.config.image_folder import check_held_out
from anml.config.load import load_train_config
from anml.config.training import TrainConfig
from anml.errors import AnmlError


def main(arguments: Sequence[str]) -> int:
    """Check the config on standard input and print {"problems": [...], "notices": [...]} as the last line."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(sys.stdin.read())
        file.flush()
        config = load_train_config(Path(file.name)).config
    print(json.dumps({"problems": find_problems(config), "notices": []}))
    return 0


def find_problems(config: TrainConfig) -> list[str]:
    """Return what is wrong between the config, the model it names and the data on this machine."""
    from anml.models import build_model

    try:
        model = build_model(config.model, config.model_args, config.image_shape, config.seed)
    except AnmlError as error:
        return [str(error)]
    problems = name_problems(config, model) or _head_problems(config, model)
    problems += _data_problems(config) + _optimizer_problems(config, model)
    return problems + _lane_problems(config, model)


def _head_problems(config: TrainConfig, model) -> list[str]:  # noqa: ANN001
    from anml.evaluate.prepared_run import check_head

    problems = []
    for name, flavor in config.eval.items():
        try:
            check_head(model, flavor)
        except AnmlError as error:
            problems.append(f"eval.{name}: {error}")
    return problems


def _lane_problems(config: TrainConfig, model) -> list[str]:  # noqa: ANN001
    from anml.meta.lanes import unsupported_lanes

    reason = unsupported_lanes(model) if config.train_together else ""
    return [f"train_together: {reason}; set it to false"] if reason else []


def name_problems(config: TrainConfig, model) -> list[str]:  # noqa: ANN001 (torch is imported late)
    """Return what is wrong with the parameters that a config names."""
    from anml.models.meta_model import check_output_layer, select_names

    checks = [("inner_params", config.inner_params), ("outer_params", config.outer_params)]
    for name, flavor in config.eval.items():
        checks += [(f"eval.{name}.opt_params", flavor.opt_params), (f"eval.{name}.reinit_params", flavor.reinit_params)]
    problems = []
    for key, selectors in checks:
        try:
            select_names(model, selectors)
        except AnmlError as error:
            problems.append(f"{key}: {error}")
    try:
        check_output_layer(model, config.output_layer)
    except AnmlError as error:
        problems.append(f"output_layer: {error}")
    return problems


def _data_problems(config: TrainConfig) -> list[str]:
    """Convert the data now, if need be, so that data that are missing, or too few, are found before jobs wait."""
    import torch

    from anml.data import load_images
    from anml.data.episodes import check_run
    from anml.train.loop import training_data

    problems: dict[str, None] = {}  # Several flavors may have the same.
    load = functools.cache(load_images)  # And the same images, each of which loading looks at.
    try:
        training_data(config, torch.device("cpu"))
    except AnmlError as error:
        problems[f"data_path: {error}"] = None
    try:
        check_held_out(config)
    except AnmlError as error:
        problems[str(error)] = None
    for name, flavor in config.eval.items():
        at = "" if flavor.data_path == config.data_path else f"eval.{name}."
        try:
            data = load(config.eval_request(flavor)).first_examples(0, flavor.imgs_per_class)
            check_run(data, max(flavor.classes), max(flavor.train_examples), max(flavor.test_examples))
        except AnmlError as error:
            problems[f"{at}data_path: {error}"] = None
    return list(problems)


def _optimizer_problems(config: TrainConfig, model) -> list[str]:  # noqa: ANN001
    from anml.meta.schedule import make_schedule, outer_rates
    from anml.train.iid import make_optimizer

    try:
        if config.train_method == "iid":
            make_schedule(config, make_optimizer(config, model))
        else:
            outer_rates(config)
    except AnmlError as error:
        return [str(error)]
    return []
