"""Values that refer to others: `lr: ${inner_lr}` has the value of another key of the same config. No arithmetic."""

import re
from collections.abc import Iterable
from typing import Any

from anml.config.binding import dotted, nearest, problem, show
from anml.config.yaml import KeyPath, Source, value_at
from anml.errors import ConfigError

_INTERPOLATION = re.compile(r"\$\{([^${}\s]+)\}")
_ABSENT = object()


def interpolate(source: Source) -> list[tuple[KeyPath, str]]:
    """Put values in the place of the `${key.sub}` that stand for them. Returns what stood where: key paths, and keys.

    Raises ConfigError with every one that is part of a value only, unknown, or refers to itself.
    """
    interpolation = _Interpolation(source)
    source.data = interpolation.value(source.data, (), ())
    if interpolation.problems:
        raise ConfigError(interpolation.problems)
    return list(interpolation.used)


def varied_interpolations(source: Source, used: Iterable[tuple[KeyPath, str]], varied: Iterable[str]) -> list[str]:
    """Return a problem for each value that refers to a key which trainings vary: it would be the same for all."""
    keys = [f"{key}." for key in varied]
    return [
        problem(source, at, f"refers to {key}, which varies between trainings; write the value itself")
        for at, key in used
        if any(other.startswith(f"{key}.") or f"{key}.".startswith(other) for other in keys)
    ]


class _Interpolation:
    def __init__(self, source: Source) -> None:
        self.source, self.problems = source, list[str]()
        self.used: dict[tuple[KeyPath, str], None] = {}

    def value(self, value: Any, at: KeyPath, referring: tuple[KeyPath, ...]) -> Any:
        """Return a value with everything inside it resolved. referring: the key paths whose values lead to this one."""
        if isinstance(value, dict):
            return {key: self.value(inner, (*at, key), referring) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.value(inner, (*at, index), referring) for index, inner in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self._follow(value, at, (*referring, at))
        return value

    def _follow(self, text: str, at: KeyPath, referring: tuple[KeyPath, ...]) -> Any:
        match = _INTERPOLATION.fullmatch(text)
        if match is None:
            return self._problem(at, f"{show(text)}: a reference is the whole value, as ${{inner_lr}}")
        self.used[at, match[1]] = None
        target = tuple(match[1].split("."))
        if any(path[: len(target)] == target for path in referring):
            chain = " -> ".join(dotted(path) for path in (*referring, target))
            return self._problem(at, f"{text} refers to itself: {chain}")
        value = value_at(self.source.data, target, _ABSENT)
        if value is _ABSENT:
            beside = value_at(self.source.data, target[:-1])
            hint = nearest(str(target[-1]), beside if isinstance(beside, dict) else ())
            return self._problem(at, f"{text}: no such key is written here, where a default must be too{hint}")
        return self.value(value, target, referring)

    def _problem(self, at: KeyPath, message: str) -> None:
        self.problems.append(problem(self.source, at, message))
