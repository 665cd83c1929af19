"""A config at sizes of seconds (`--smoke-test`): every job runs, none of the numbers means anything."""

from typing import Any

from anml.config.evaluation import EvalConfig
from anml.config.training import FewShot, TrainConfig

# The widths in model arguments, for a smoke test; other arguments stay.
_SMALL = {"rln_chs": 8, "nm_chs": 4, "num_filters": 8, "hidden": 16, "hidden_layers": 16, "channels": 8, "width": 8}

_SMALL_EPISODE = {"ways": 2, "shots": 2, "queries": 2}


def smoke_test(config: TrainConfig, on_gpu: bool = False) -> TrainConfig:
    """Return the config at sizes of seconds: few episodes, two classes, one run, two learning rates, one checkpoint.

    Every job runs; none of the numbers means anything. on_gpu: rehearse the engines of the real jobs, whose graphs
    are captured after three updates, or three classes.
    """
    steps = 6 if on_gpu else 2
    holds_out = config.keep_best or any(flavor.is_validation for flavor in config.eval.values())
    few = config.few_shot or FewShot()
    return config.model_copy(
        update={
            "epochs": steps if config.method.is_episodic else 1,
            "max_steps": steps,
            # On a CPU the first build of the native kernel would take most of the minute.
            "engine": "fast" if config.engine == "auto" and not on_gpu else config.engine,
            "eval_steps": (steps,),
            "log_freq": 1,
            # An incomplete copy of the data is enough to see that every job runs.
            "allow_incomplete": True,
            # A sample of the data may have four classes, and validation needs some of them.
            "train_classes": min(config.num_train_classes, 2 if holds_out else 4),
            "imgs_per_class": min(config.images_per_class, 8),
            "train_size": min(config.examples_per_class, 6),
            "batch_size": min(config.batch_size, 2),
            "num_batches": min(config.inner_steps, 2),
            "remember_size": min(config.remember_size, 4),
            "few_shot": few.model_copy(update=_SMALL_EPISODE) if config.method.head else config.few_shot,
            "tasks": config.tasks and 1,
            "val_size": min(config.val_size, 4),
            "model_args": _narrow("", config.model_args),
            "eval": {name: _small_evaluation(flavor, on_gpu) for name, flavor in config.eval.items()},
        }
    )


def _small_evaluation(config: EvalConfig, on_gpu: bool) -> EvalConfig:
    # Training leaves two classes for validation.
    classes = 4 if on_gpu and not config.is_validation else 2
    return config.model_copy(
        update={
            "allow_incomplete": True,
            "classes": (min(classes, *config.classes),),
            "train_examples": (min(2, *config.train_examples),),
            "test_examples": (4 if config.measure else 1,),  # A representation is measured on four images or more.
            "lr": config.lr[:2],
            "runs": 1,
            "until": None,
            "init_size": min(config.init_size, 4),
            "eval_freq": None,
        }
    )


def _narrow(key: str, value: Any) -> Any:
    """Narrow a model's layers, those in nested arguments included."""
    if isinstance(value, dict):
        return {inner: _narrow(inner, argument) for inner, argument in value.items()}
    if key not in _SMALL:
        return value
    return [_SMALL[key]] * len(value) if isinstance(value, (list, tuple)) else _SMALL[key]
