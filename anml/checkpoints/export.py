"""A checkpoint to share: the model without its training state, and a card of its origin and accuracy."""

from pathlib import Path
from typing import Any

import torch
import yaml

from anml.atomic import read_json
from anml.checkpoints import ModelCard, load_model, save_model
from anml.config.load import dump_config
from anml.config.training import TrainConfig
from anml.config.vary import TrainingId
from anml.errors import CheckpointError, ConfigError
from anml.experiment import Experiment
from anml.models.meta_model import find_not_finite
from anml.report.tables import BY_CLASSES_COLUMNS, best_by_classes, missing_results, read_scores


def export_model(
    experiment: Experiment, config: TrainConfig, step: int, training: TrainingId, target: Path, half: bool
) -> list[str]:
    """Write a checkpoint of one of an experiment's trainings to a folder. `half` rounds the weights to float16.

    target: a new folder, an empty one, or an earlier export, which is replaced. Returns a sentence for each of its
    sweeps that is not complete; the card has them too. Raises CheckpointError, and ConfigError on another target.
    """
    _check_target(target)
    model, card = load_model(experiment.checkpoint(step, training.tag))
    about = _about(experiment, config.for_training(training), card, half)
    if half:
        model.half()
        if name := find_not_finite(model.state_dict()):
            message = f"{name} has numbers beyond float16's range (65504): export it without --half"
            raise CheckpointError(message)
    save_model(target, model, card, about)
    return about["missing"]


def _check_target(target: Path) -> None:
    """Raise ConfigError where writing an export would remove anything but an earlier export."""
    if not target.exists():
        return
    names = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    card = read_json(target / "model.json")
    # A checkpoint that training can continue from has more files, and its card no `about`.
    is_export = names == {"model.json", "model.safetensors"} and "about" in card
    if names and not is_export:
        message = f"{target}: exists and is not an earlier export, so it is left alone; name a new folder"
        raise ConfigError(message)


def _about(experiment: Experiment, config: TrainConfig, card: ModelCard, half: bool) -> dict[str, Any]:
    """Return what a user of the model may want to know about its training. config: of this training alone.

    accuracy: on test examples at the best learning rate, for every flavor and number of classes learned.
    """
    environment = read_json(experiment.environment_file)
    identity = (card.display_name, card.step, card.seed)
    rows = [r for r in read_scores(experiment)[0] if (r.model, r.checkpoint_step, r.train_seed) == identity]
    this_step = config.model_copy(update={"eval_steps": (card.step,), "eval_untrained": False})
    return {
        "config": _without(yaml.safe_load(dump_config(config)), "data_path"),
        "git_commit": environment.get("git_commit"),
        "trained_on": _without(environment.get("training_machine"), "host"),
        "weights": str(torch.float16 if half else torch.float32).removeprefix("torch."),
        "accuracy": [{name: getattr(best, name) for name in BY_CLASSES_COLUMNS} for best in best_by_classes(rows)],
        "missing": missing_results(this_step, rows),
    }


def _without(data: Any, private: str) -> Any:
    """Return nested data without a key whose values only concern this machine."""
    if not isinstance(data, dict):
        return data
    return {key: _without(value, private) for key, value in data.items() if key != private}
