"""How the report says things: numbers, times, units, and what was run in one sentence."""

from collections.abc import Sequence

from anml.config.facts import DATASETS, dataset_label, is_validation, without_validation
from anml.config.training import TrainConfig
from anml.config.vary import written

HELD_OUT = "held-out background classes"


def unit(config: TrainConfig | None) -> str:
    """Return what checkpoints and training curves count."""
    return config.method.unit if config is not None else "episodes"


def images(dataset: str) -> str:
    """Return what the examples of a data set are called."""
    facts = DATASETS.get(without_validation(dataset))
    return facts.noun if facts else "images"


def classes(held_out: bool) -> str:
    """Return what the classes of an evaluation are called: those for evaluation are just `classes`."""
    return HELD_OUT if held_out else "classes"


def classes_of(dataset: str) -> str:
    """Return `classes of omniglot`, or which others: of `omniglot-validation`, `held-out background classes of ...`."""
    return f"{classes(is_validation(dataset))} of {without_validation(dataset)}"


def in_lines(noun: str) -> str:
    """Return `classes of omniglot` in lines that fit beside a panel."""
    return noun.replace("held-out ", "held-out\n").replace(" of ", "\nof ")


def checkpoint(step: int, unit: str) -> str:
    """Return the name of a checkpoint: `after 600 episodes`, `untrained`."""
    return f"after {count(step, unit)}" if step else "untrained"


def count(number: int, plural: str) -> str:
    """Return a number with its noun: `600 episodes`, `1 episode`, `1 trajectory`."""
    singular = f"{plural[:-3]}y" if plural.endswith("ies") else plural.removesuffix("s")
    return f"{number:,} {singular if number == 1 else plural}"


def sentence(config: TrainConfig) -> str:
    size = config.image_shape[1]
    name = config.facts.display_name or dataset_label(config.dataset)
    rotated = f" by {len(config.rotations)} rotations" if config.rotations else ""
    data = f"{name} ({config.num_train_classes:,} classes{rotated} of "
    data += f"{config.examples_per_class:,} {config.facts.noun}, {size}x{size} pixels)"
    amount = f"{count(config.total_steps, unit(config))}{_options(config)}, {_trainings(config)}"
    varies = any(key == "train_method" for training in config.trainings for key, _ in training.varied)
    trained = "trained" if varies else config.method.words
    return f"{config.display_name} {trained} on {data} for {amount}; {_evaluations(config)}."


def _trainings(config: TrainConfig) -> str:
    """Return `seeds 1 and 2, outer_lr 0.001 and 0.003, each trained on its own`: what trainings have, seeds first."""
    keys = dict.fromkeys(("seed", *(key for training in config.trainings for key, _ in training.varied)))
    values = [config.values_of(training, keys) for training in config.trainings]
    distinct = {key: list(dict.fromkeys(written(each[key]) for each in values)) for key in keys}
    names = {"seed": "seeds", "inner_lr": "inner learning rates"}
    parts = [
        f"{names.get(key, key) if len(each) > 1 else key} {listed(each)}"
        for key, each in distinct.items()
        if len(each) > 1 or key not in ("inner_lr",)
    ]
    return ", ".join([*parts, *(["each trained on its own"] if len(config.trainings) > 1 else [])])


def _options(config: TrainConfig) -> str:
    """Return what is not part of the usual protocol."""
    schedule, args = config.outer_lr_scheduler, config.outer_lr_scheduler_args or {}
    text = f", outer learning rate by {schedule}" if schedule else ""
    text += f" ({', '.join(f'{key} {value}' for key, value in args.items())})" if args else ""
    text += f", weights averaged (EMA, decay {config.ema_decay})" if config.ema_decay is not None else ""
    text += ", of which the best on held-out background classes is kept" if config.keep_best else ""
    early = f" (it ends early after {config.patience} validations without a better one)"
    return text + (early if config.patience else "")


def _evaluations(config: TrainConfig) -> str:
    if not config.eval:
        return "nothing was to be evaluated"
    most = max(max(flavor.classes) for flavor in config.eval.values())
    held_out = [name for name, flavor in config.eval.items() if flavor.is_validation]
    which = HELD_OUT if len(held_out) == len(config.eval) else "classes never seen in training"
    which += f" ({listed(held_out)}: {HELD_OUT})" if 0 < len(held_out) < len(config.eval) else ""
    runs = sorted({flavor.runs for flavor in config.eval.values()})
    each = f"{listed([str(number) for number in runs], 'or')} run{'s' if runs[-1] > 1 else ''} each"
    return f"evaluated by {count(len(config.eval), 'flavors')} on up to {most:,} {which}, {each}"


def listed(words: Sequence[str], joint: str = "and") -> str:
    *first, last = words
    return f"{', '.join(first)} {joint} {last}" if first else last
