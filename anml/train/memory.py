"""How much memory a training, or an evaluation, of a model needs at least: what does not fit is never submitted.

Counted is what all engines hold at one time. Images, what layers keep of their outputs, and libraries come on top, so
that what is said not to fit certainly does not.
"""

from torch import nn

from anml.config.evaluation import EvalConfig
from anml.config.methods import METHODS
from anml.config.training import TrainConfig
from anml.models.meta_model import MetaModel, select_names

# Bytes of each part, by its name.
Parts = dict[str, int]


def of_training(config: TrainConfig, model: MetaModel, trainings: int = 1) -> Parts:
    """Return what so many trainings in one process hold when the outer optimizer steps. The model may be on `meta`."""
    parts = {"weights": trainings * _bytes(model)}
    if config.train_method not in METHODS:  # A user's class may hold anything.
        return parts
    names = select_names(model, config.outer_params) if config.method.is_episodic else None
    updated, keeps_moments = trainings * _bytes(model, names), config.method.is_episodic or config.optimizer == "Adam"
    parts |= {"gradients": updated, "moments of Adam": 2 * updated * keeps_moments}
    if config.method.is_second_order:
        # Every engine keeps the convolutions of each step; Linear layers learn in dual form (meta/fast.py). Of what is
        # rounded to bfloat16 the weights themselves need not stay.
        inner = set(select_names(model, config.inner_params))
        convolutions = [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
        steps, size = config.inner_steps * config.train_cycles, _bytes(model, [n for n in convolutions if n in inner])
        parts[f"fast weights of {steps} inner steps"] = steps * size // (2 if config.precision == "bf16-mixed" else 1)
    return parts


def of_evaluation(config: EvalConfig, model: MetaModel) -> Parts:
    """Return what one trajectory holds: the model as loaded, as prepared for all runs, and as prepared for its run."""
    learned = select_names(model, config.opt_params) if config.protocol.learns and config.learns_by_adam else []
    return {"weights in three copies": 3 * _bytes(model), "moments of Adam": 2 * _bytes(model, learned)}


def _bytes(model: MetaModel, names: list[str] | None = None) -> int:
    """Return the memory of a model's parameters, or of those with these names."""
    return sum(value.nbytes for name, value in model.named_parameters() if names is None or name in names)
