"""What tells trainings apart, and which of their evaluations are the same.

The choices of a training are the keys of its config that play a part in it and are not the same in all. What a
comparison says elsewhere is left out: seeds, amounts, sizes of images and of output layers, and what is evaluated.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from anml.config.model_args import complete_args
from anml.config.protocols import PROTOCOLS, EvalProtocol, find_protocol
from anml.config.training import FewShot, TrainConfig

T = TypeVar("T")
# In the order in which a comparison names them.
_OF_ALL = (
    "train_method", "model", "dataset", "channels", "train_classes", "train_size", "imgs_per_class", "augment",
    "rotations",
)  # fmt: skip
_OF_EPISODES = (
    "inner_lr", "outer_lr", "outer_lr_scheduler", "remember_size", "remember_only", "lobotomize", "sample_method",
    "batch_size", "num_batches", "train_cycles", "replacement", "lobo_classes", "tasks", "inner_optimizer",
    "inner_momentum",
)  # fmt: skip
_OF_FEW_SHOT = ("few_shot", "outer_lr", "outer_lr_scheduler")
_OF_IID = ("lr", "optimizer", "lr_scheduler", "batch_size", "lobo_rate", "lobo_size")
_OF_ZAPPING = ("lobo_scale", "lobo_first", "lobo_biased_steps", "lobo_biased_fraction", "lobo_biased_params")
_OF_UPDATES = ("ema_decay", "keep_best", "patience", "max_grad_norm", "precision")
# They name the parameters of one kind of model; of another they are different by nature.
_OF_ONE_MODEL = ("initialisation", "inner_params", "outer_params")
# Where nobody has set these, they follow from another key, which is named.
_FOLLOWING = ("train_classes", "train_size", "imgs_per_class", "num_batches")
# Values that are more than what stands behind the key.
_RESOLVED: Mapping[str, Callable[[TrainConfig], Any]] = {
    "train_classes": lambda config: config.num_train_classes,
    "train_size": lambda config: config.examples_per_class,
    "imgs_per_class": lambda config: config.images_per_class,
    "num_batches": lambda config: config.inner_steps,
    "outer_lr_scheduler": lambda config: _called(config.outer_lr_scheduler, config.outer_lr_scheduler_args or {}),
    "lr_scheduler": lambda config: _called(config.lr_scheduler, config.lr_scheduler_args),
    "optimizer": lambda config: _called(config.optimizer, config.optimizer_args),
    "few_shot": lambda config: _called("", (config.few_shot or FewShot()).model_dump(exclude_none=True)),
    "precision": lambda config: config.precision or "float32",
    "lobo_rate": lambda config: config.lobo_rate or None,
    "initialisation": lambda config: config.initialisation or "uniform",
    "inner_optimizer": lambda config: config.inner_optimizer or "sgd",
    "inner_momentum": lambda config: config.inner_momentum or None,
    "inner_params": lambda config: selectors(config, config.inner_params),
    "outer_params": lambda config: selectors(config, config.outer_params),
}


class _Key(NamedTuple):
    """A key of a config, dotted where it is nested. scope: values are compared with those of the same scope alone."""

    name: str
    scope: str = ""


def choices(configs: Sequence[TrainConfig | None]) -> list[dict[str, str]]:
    """Return for each config the keys that tell it from others, with its values as they are written in YAML."""
    settings = [_settings(config) if config else {} for config in configs]
    readable = [config for config in configs if config]
    keys = dict.fromkeys(key for values in settings for key in values)
    varied = [key for key in keys if _is_choice(key, {values[key] for values in settings if key in values}, readable)]
    return [{key.name: values[key] for key in varied if key in values} for values in settings]


def _is_choice(key: _Key, values: set[str], configs: Sequence[TrainConfig]) -> bool:
    if key.name in _FOLLOWING and all(getattr(config, key.name) is None for config in configs):
        return False
    if key.name == "model" and all(config.model in config.display_name.lower() for config in configs):
        return False  # Their names say it.
    return len(values) > 1


def _settings(config: TrainConfig) -> dict[_Key, str]:
    """Return everything that makes a difference to a training."""
    scope, names = ("episodes", _OF_EPISODES) if config.method.is_episodic else ("batches", _OF_IID)
    scope, names = ("few-shot", _OF_FEW_SHOT) if config.method.head else (scope, names)
    keys = [*map(_Key, _OF_ALL), *(_Key(name, scope) for name in names), *map(_Key, _OF_UPDATES)]
    keys += [_Key(name, "zapping") for name in _OF_ZAPPING] if config.is_zapped else []
    keys += [_Key(name, config.model) for name in _OF_ONE_MODEL if scope == "episodes" or name == "initialisation"]
    values = {key: _RESOLVED.get(key.name, attrgetter(key.name))(config) for key in keys}
    values |= {_Key(name): value for name, value in _flat("model_args", complete_args(config.model_record))}
    return {key: _written(value) for key, value in values.items()}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values inside a mapping by their dotted keys."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, inner in value.items():
        if key != "num_classes":  # A note has the numbers of outputs.
            yield from _flat(f"{name}.{key}", inner)


def _written(value: Any) -> str:
    """Return a value as in YAML: `0.003`, `true`, `null`, `[rln, head]`; a list of one as that one."""
    if isinstance(value, (list, tuple)):
        words = [_written(item) for item in value]
        return words[0] if len(words) == 1 else f"[{', '.join(words)}]"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return value if isinstance(value, str) else json.dumps(value)


def _called(name: str | None, arguments: Mapping[str, Any]) -> str | None:
    """Return what torch knows by a name, with its arguments: `SGD (momentum 0.9)`."""
    if name is None or not arguments:
        return name
    return f"{name} ({', '.join(f'{key} {_written(value)}' for key, value in arguments.items())})"


class Evaluation(NamedTuple):
    """What makes two flavors of different experiments the same evaluation: how and on what is learned, not their names.

    All keys of a flavor's config that change what its accuracy means; None or empty where one plays no part. Not here,
    since a comparison allows for them: sizes and rates of the sweep, the number of runs, when to score.
    held_out_from: of background classes, how many come before those that were held out (each number leaves others).
    options: further keys that are set, most of them read by some protocols only, with their values.
    unknown: PROJECT/GROUP/FLAVOR where no config tells more; it equals no other.
    """

    eval_method: str
    dataset: str
    opt_params: tuple[str, ...] = ()
    reinit_params: tuple[str, ...] = ()
    reinit_method: str = ""
    reinit_bias: str = ""
    adam_betas: tuple[float, float] | None = None
    init_size: int | None = None
    init_examples: str = ""
    epochs: int | None = None
    batch_size: int | None = None
    imgs_per_class: int | None = None
    allow_incomplete: bool = False
    class_names: tuple[str, ...] = ()
    held_out_from: int = 0
    unknown: str = ""
    optimizer: str | None = None
    lr_scheduler: str | None = None
    options: tuple[str, ...] = ()
    chosen_on: str = ""

    @property
    def protocol(self) -> EvalProtocol:
        """The protocol. Of a user's own without a config, results tell no more than its name."""
        is_lost = self.unknown and self.eval_method not in PROTOCOLS
        return EvalProtocol("") if is_lost else find_protocol(self.eval_method)

    @property
    def is_oracle(self) -> bool:
        return self.protocol.is_shuffled

    @property
    def pair(self) -> "Evaluation":
        """What a sequential evaluation and its oracle share: all but the order and the batches of the examples."""
        if not self.protocol.learns or self.protocol.replays:
            return self
        return self._replace(eval_method="", epochs=None, batch_size=None)


def evaluation_of(config: TrainConfig, flavor: str) -> Evaluation:
    keys = config.eval[flavor]
    request = config.eval_request(keys)
    learns, shuffled = keys.protocol.learns, keys.protocol.is_shuffled
    method = "lstsq" if keys.protocol.solves_head else keys.reinit_method
    return Evaluation(
        keys.eval_method,
        request.name,
        opt_params=selectors(config, keys.opt_params) if learns else (),
        reinit_params=selectors(config, keys.reinit_params),
        reinit_method="" if keys.protocol.baseline else method,
        reinit_bias="" if keys.protocol.baseline else keys.reinit_bias,
        adam_betas=keys.betas if learns else None,
        init_size=keys.init_size if method == "lstsq" else None,
        init_examples=keys.init_examples or "" if method == "lstsq" else "",
        epochs=keys.epochs if shuffled else None,
        batch_size=keys.batch_size if keys.protocol.takes_batches else None,
        imgs_per_class=request.examples,
        allow_incomplete=request.allow_incomplete,
        class_names=request.classes[request.first_class :],
        held_out_from=request.first_class,
        optimizer=_called(keys.stepper.optimizer, keys.optimizer_args or {}) if learns else None,
        lr_scheduler=_called(keys.lr_scheduler, keys.lr_scheduler_args or {}) if learns else None,
        options=tuple(
            f"{key} {value}"
            for key in (*keys.protocol.options, "feature_map", "shifts", "shift_step", "channels")
            if (value := getattr(keys, key)) is not None
        ),
        chosen_on="held-out classes" if keys.choose else "",
    )


def selectors(config: TrainConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of layers with the output layer called `head`, as it is for every model, in one order."""
    return tuple(sorted("head" if name == config.output_layer else name for name in names))


@dataclass
class Alignment:
    """One evaluation, and what each model (by its index) calls it.

    difference: what tells it from another of the same name, if there is one.
    """

    name: str
    evaluation: Evaluation
    flavors: dict[int, str]
    difference: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.difference})" if self.difference else self.name

    def pick(self, items: Sequence[Mapping[str, T]]) -> dict[int, T]:
        """Return the items of this evaluation by the index of the model, given those of each model by flavor."""
        return {index: items[index][flavor] for index, flavor in sorted(self.flavors.items())}


def align(models: Sequence[Mapping[str, Evaluation]]) -> list[Alignment]:
    """Return the evaluations of models, each given as {flavor: what it does}; oracles follow sequential ones.

    Flavors of the same name come together first, then others that do the same: two flavors of one model never do.
    """
    aligned: list[Alignment] = []
    for index, flavors in enumerate(models):
        earlier = {(match.name, match.evaluation) for match in aligned}
        for flavor in sorted(flavors, key=lambda name: (name, flavors[name]) not in earlier):
            same = [a for a in aligned if a.evaluation == flavors[flavor] and index not in a.flavors]
            if same:
                match = next((match for match in same if match.name == flavor), same[0])
                match.flavors[index] = flavor
            else:
                aligned.append(Alignment(flavor, flavors[flavor], {index: flavor}))
    _tell_apart(aligned)
    pairs = list(dict.fromkeys(match.evaluation.pair for match in aligned))
    return sorted(aligned, key=lambda match: (pairs.index(match.evaluation.pair), match.evaluation.is_oracle))


def _tell_apart(aligned: Sequence[Alignment]) -> None:
    """Say of evaluations of one name, which do different things, in what they differ."""
    names = Counter(match.name for match in aligned)
    for match in [match for match in aligned if names[match.name] > 1]:
        if match.evaluation.unknown:
            match.difference = f"config of {match.evaluation.unknown.rpartition('/')[0]} unreadable"
            continue
        others = [o.evaluation for o in aligned if o.name == match.name and not o.evaluation.unknown]
        keys = [key for key in Evaluation._fields if len({getattr(other, key) for other in others}) > 1]
        match.difference = "; ".join(_worded(key, getattr(match.evaluation, key)) for key in keys)


def _worded(key: str, value: Any) -> str:
    if key == "class_names":
        return f"{len(value)} classes from {value[0]} on" if value else "all classes"
    if key == "options":
        return ", ".join(value) or "usual options"
    if key == "held_out_from":
        return f"held out: all after the first {value} classes"
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{key}: {text}" if text and value is not None else f"no {key}"
