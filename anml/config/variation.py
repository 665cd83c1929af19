"""What tells the trainings of one experiment apart: the inner learning rate, the seed, or both."""

import math
import re
from typing import NamedTuple

_TAG = re.compile(r"(?:inner-lr-(?P<inner_lr>[\d.e+-]+?))?-?(?:seed-(?P<seed>-?\d+))?")
_MODEL = re.compile(r"(?P<name>.*)-inner-lr-(?P<inner_lr>\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


class Variation(NamedTuple):
    """One of an experiment's trainings. None: not varied, all trainings have the same."""

    inner_lr: float | None = None
    seed: int | None = None

    @property
    def tag(self) -> str:
        """`inner-lr-0.05-seed-1`, `seed-1` or nothing: a part of the names of folders, files and jobs."""
        return "-".join(f"{name.replace('_', '-')}-{value}" for name, value in self._varied())

    @property
    def words(self) -> str:
        """`inner_lr 0.05, seed 1`, `seed 1` or nothing."""
        return ", ".join(f"{name} {value}" for name, value in self._varied())

    def flags(self, prefix: str = "--") -> tuple[str, ...]:
        """Return the arguments that name this training on a command line."""
        varied = self._varied()
        return tuple(word for name, value in varied for word in (prefix + name.replace("_", "-"), str(value)))

    def _varied(self) -> list[tuple[str, float]]:
        return [(name, value) for name, value in self._asdict().items() if value is not None]


def variation_of(tag: str) -> Variation:
    """Return the training that a tag names. Raises ValueError."""
    found = _TAG.fullmatch(tag)
    if found is None:
        message = f"{tag!r} names no training"
        raise ValueError(message)
    rate, seed = found["inner_lr"], found["seed"]
    return Variation(None if rate is None else float(rate), None if seed is None else int(seed))


def variation_order(one: Variation) -> tuple[float, float]:
    """Return what trainings are sorted by: their inner rates and seeds as numbers; what is not varied comes first."""
    inner_lr, seed = (-math.inf if value is None else float(value) for value in one)
    return inner_lr, seed


def model_order(name: str) -> tuple[str, float]:
    """Return what names of models are sorted by: `anml-inner-lr-1e-05` comes before `anml-inner-lr-0.05`."""
    found = _MODEL.fullmatch(name)
    return (name, -math.inf) if found is None else (found["name"], float(found["inner_lr"]))
