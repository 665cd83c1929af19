"""What varies between the trainings of an experiment: `vary`, and its short forms `inner_lrs` and `seeds`."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from anml.config.binding import Many
from anml.config.yaml import Source, in_one_line

SHORT_FORMS = {"inner_lr": "inner_lrs", "seed": "seeds"}
# Mappings whose keys can vary; anything else that varies is a key of the training itself.
NESTED = ("model_args", "optimizer_args", "lr_scheduler_args", "outer_lr_scheduler_args", "few_shot")
# All trainings of an experiment have the same classes, evaluations and machine.
SAME_FOR_ALL = (
    "project", "entity", "group", "cluster", "dataset", "data_path", "im_size", "imgs_per_class", "class_split",
    "train_classes", "rotations", "keep_best", "patience", "allow_incomplete", "epochs", "max_steps", "save_freq",
    "log_freq", "eval_steps", "eval_untrained", "eval", "eval_checkpoints", "train_together", "device", "deterministic",
    "reuse", "channels", *SHORT_FORMS.values(), "vary", "vary_later", "model_name",
)  # fmt: skip
# Trainings that differ in nothing else have the same layers and steps: a GPU can do them at once.
RATES = ("inner_lr", "outer_lr", "max_grad_norm", "ema_decay", "seed")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")

Scalar = bool | int | float | str | None
Value = Scalar | Many[Scalar]
# A product of values by key, or points that are picked by hand.
Vary = Mapping[str, Sequence[Value]] | Sequence[Mapping[str, Value]]


class TrainingId(NamedTuple):
    """One of an experiment's trainings: the keys that vary, with the values that this training has."""

    varied: tuple[tuple[str, Value], ...] = ()

    @property
    def tag(self) -> str:
        """`inner-lr-0.05-seed-1`, `rln-chs-64` or nothing: a part of the names of folders, files and jobs."""
        return "-".join(f"{_last(key).replace('_', '-')}-{_in_names(value)}" for key, value in self.varied)

    @property
    def words(self) -> str:
        """`inner_lr 0.05, seed 1`, `seed 1` or nothing."""
        return ", ".join(f"{_last(key)} {written(value)}" for key, value in self.varied)

    @property
    def model(self) -> "TrainingId":
        """The same without the seed: trainings that differ in their seed alone train the same model."""
        return self.only(lambda key: key != "seed")

    @property
    def together(self) -> "TrainingId":
        """What it has in common with the trainings that a GPU can do at once."""
        return self.only(lambda key: key not in RATES)

    def only(self, wanted: Callable[[str], bool]) -> "TrainingId":
        return TrainingId(tuple((key, value) for key, value in self.varied if wanted(key)))

    def flags(self, prefix: str = "--") -> tuple[str, ...]:
        """Return the arguments that name this training on a command line."""
        if any(key not in SHORT_FORMS for key, _ in self.varied):
            return ("--training", self.tag)
        return tuple(word for key, value in self.varied for word in (prefix + key.replace("_", "-"), str(value)))


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def written(value: Value) -> str:
    """Return a value in one line, as in YAML but for numbers: `0.003`, `true`, `null`, `[rln, fc]`."""
    return in_one_line(value) if value is None or isinstance(value, (bool, tuple)) else str(value)


def _in_names(value: Value) -> str:
    return re.sub(r"[^\w.+-]+", "-", written(value).strip("[]"))


def all_points(vary: Vary | None, inner_lrs: Sequence[float] | None, seeds: Sequence[int] | None) -> list[TrainingId]:
    """Return every training: inner rates first, seeds last, in the order in which they are written."""
    rates = [(("inner_lr", rate),) for rate in inner_lrs] if inner_lrs else [()]
    last = [(("seed", seed),) for seed in seeds] if seeds else [()]
    if isinstance(vary, Mapping):
        points = list(product(*([(key, value) for value in values] for key, values in vary.items())))
    else:
        points = [tuple(point.items()) for point in vary or ({},)]
    return [TrainingId((*rate, *point, *seed)) for rate, point, seed in product(rates, points, last)]


def adopt_vary(source: Source) -> list[str]:
    """Rewrite `vary` in place: keys in their dotted form, `inner_lr` and `seed` of a product in their short forms.

    Returns the short forms that are given twice. Doing it twice changes nothing more.
    """
    vary = source.data.get("vary")
    if isinstance(vary, list):
        source.data["vary"] = [_dotted(point) if isinstance(point, dict) else point for point in vary]
    if not isinstance(vary, dict):
        return []
    vary = source.data["vary"] = _dotted(vary)
    for key in vary:
        source.copy_locations(("vary", *key_path(key)), ("vary", key))
    twice = []
    for key in [key for key in SHORT_FORMS if key in vary]:
        short = SHORT_FORMS[key]
        if source.data.get(short) is not None:
            twice.append(short)
        source.data[short] = vary.pop(key)
        source.copy_locations(("vary", key), (short,))
    if not vary:
        del source.data["vary"]
    return twice


def varied_keys(data: Mapping[str, Any]) -> list[str]:
    """Return the keys that vary in what was read of a config."""
    vary = data.get("vary")
    points = [point for point in (vary if isinstance(vary, list) else [vary]) if isinstance(point, dict)]
    return [
        *(key for point in points for key in point),
        *(key for key, short in SHORT_FORMS.items() if data.get(short)),
    ]


def _dotted(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def cannot_vary(key: str, keys: Iterable[str]) -> str:
    """Return why a key cannot vary between trainings, empty where it can. keys: those of a training."""
    name, *inside = key_path(key)
    if name not in keys:
        return f"there is no key {key!r}"
    if name in SAME_FOR_ALL:
        return f"{key} is the same for all trainings of an experiment"
    if inside and name not in NESTED:
        return f"{name} has no keys"
    if name in NESTED and not inside:
        return f"{key} does not vary as a whole; name a key of it, as model_args.rln_chs"
    return ""


def with_types(vary: Vary, typed: Mapping[tuple[str, Value], Value]) -> Vary:
    """Return `vary` with values as their keys have them: 1 is 1.0 where the key is a float, in all names."""
    if isinstance(vary, Mapping):
        return {key: tuple(typed.get((key, value), value) for value in values) for key, values in vary.items()}
    return tuple({key: typed.get((key, value), value) for key, value in point.items()} for point in vary)


def clashes(trainings: Sequence[TrainingId]) -> list[str]:
    """Return why these cannot all be trained: a key that varies in two ways, or trainings of one name."""
    varied = [[key for key, _ in training.varied] for training in trainings]
    reasons = [
        f"{key} varies by {short} too; keep one"
        for key, short in SHORT_FORMS.items()
        if any(each.count(key) > 1 for each in varied)
    ]
    tags = Counter(training.tag for training in trainings)
    return reasons + [f"two trainings would be called {tag}" for tag, count in tags.items() if count > 1]


def changes_of(training: TrainingId, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that a training changes, with their new values; settings: the values of all keys before."""
    changes: dict[str, Any] = {}
    for key, value in training.varied:
        name, *inside = key_path(key)
        changes[name] = _with(changes.get(name, settings.get(name)) if inside else None, inside, value)
    return changes


def _with(mapping: Any, path: Sequence[str], value: Value) -> Any:
    """Return a copy of nested mappings with the value at a path."""
    if not path:
        return value
    inner = dict(mapping or {})
    return inner | {path[0]: _with(inner.get(path[0]), path[1:], value)}


def key_path(key: str) -> tuple[str, ...]:
    return tuple(key.split("."))


def natural_order(name: str) -> tuple[tuple[str, float], ...]:
    """Return what names are sorted by: `anml-inner-lr-1e-05` comes before `anml-inner-lr-0.05`."""
    parts = _NUMBER.split(name)
    return tuple(zip(parts[::2], [*map(float, parts[1::2]), -1.0], strict=True))


def choices(trainings: Sequence[TrainingId]) -> str:
    """Return `--inner-lr 0.1 | 0.05, --seed 1 | 2`, or the tags where other keys vary."""
    values: dict[str, list[str]] = {}
    for flags in [training.flags() for training in trainings]:
        for flag, value in zip(flags[::2], flags[1::2], strict=True):
            values.setdefault(flag, []).append(value)
    named = [f"{flag} {' | '.join(dict.fromkeys(each))}" for flag, each in values.items()]
    return ", ".join(named + ["none of these for the first"] * (not all(training.varied for training in trainings)))
