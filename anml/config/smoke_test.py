"""Shrinks a config until the whole pipeline takes seconds: every job still runs, none of the numbers means anything."""

from typing import Any

from anml.config.evaluation import EvalConfig
from anml.config.training import TrainConfig

# Widths, in whatever records of model arguments have them; anything else keeps the model as it is.
_SMALL = {"rln_chs": 8, "nm_chs": 4, "num_filters": 8, "hidden": 16, "hidden_layers": 16, "channels": 8, "width": 8}


def smoke_test(config: TrainConfig) -> TrainConfig:
    """Return the config at the smallest sizes: two episodes, two classes, one run, two rates, one checkpoint."""
    return config.model_copy(
        update={
            "epochs": 2 if config.train_method != "iid" else 1,
            "max_steps": 2,
            # Building the native kernel, where it is the first time, would take most of the minute.
            "engine": "fast" if config.engine == "auto" else config.engine,
            "eval_steps": (2,),
            "log_freq": 1,
            # Data as small as a hand-made sample: an incomplete copy is enough to see that every job runs.
            "allow_incomplete": True,
            "train_classes": min(config.num_train_classes, _most_classes(config)),
            "imgs_per_class": min(config.images_per_class, 8),
            "train_size": min(config.examples_per_class, 6),
            "batch_size": min(config.batch_size, 2),
            "num_batches": min(config.inner_steps, 2),
            "remember_size": min(config.remember_size, 4),
            "val_size": min(config.val_size, 4),
            "model_args": _small_model(config.model_args),
            "eval": {name: _small_evaluation(flavor) for name, flavor in config.eval.items()},
        }
    )


def _most_classes(config: TrainConfig) -> int:
    """Return how many classes train: of a sample of four, two where classes are held out for validation."""
    return 2 if any(flavor.is_validation for flavor in config.eval.values()) else 4


def _small_evaluation(config: EvalConfig) -> EvalConfig:
    return config.model_copy(
        update={
            "allow_incomplete": True,
            "classes": (min(2, *config.classes),),
            "train_examples": (min(2, *config.train_examples),),
            "test_examples": (1,),
            "lr": config.lr[:2],
            "runs": 1,
            "init_size": min(config.init_size, 4),
            "eval_freq": None,
        }
    )


def _small_model(args: dict[str, Any]) -> dict[str, Any]:
    """Narrow a model's layers, those in nested arguments included."""
    small: dict[str, Any] = {}
    for key, value in args.items():
        if isinstance(value, dict):
            small[key] = _small_model(value)
        elif key in _SMALL:
            small[key] = [_SMALL[key]] * len(value) if isinstance(value, (list, tuple)) else _SMALL[key]
        else:
            small[key] = value
    return small
