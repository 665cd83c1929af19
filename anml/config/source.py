"""The data of a config file, and where each of its keys was written."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]


class Rank(IntEnum):
    """How directly the user wrote something: in a base (`<<`) or an included file, in the file given, or with it."""

    INHERITED = 0
    IN_FILE = 1
    ON_COMMAND_LINE = 2


@dataclass(frozen=True)
class Location:
    """Where a value was written: a file and a line (from 1), or the command line."""

    file: str
    line: int | None = None
    inherited: bool = field(default=False, compare=False)

    @property
    def rank(self) -> Rank:
        """How directly the user wrote it there."""
        if self.line is None:
            return Rank.ON_COMMAND_LINE
        return Rank.INHERITED if self.inherited else Rank.IN_FILE

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass
class Source:
    """The data of a YAML file and the location of each of its keys."""

    data: Any
    locations: dict[KeyPath, Location] = field(default_factory=dict)

    def locate(self, key_path: KeyPath) -> Location:
        """Return the location of a key, or of the nearest enclosing one (a missing key has none of its own)."""
        while key_path and key_path not in self.locations:
            key_path = key_path[:-1]
        return self.locations.get(key_path, Location("config"))

    def forget(self, key_path: KeyPath) -> None:
        """Drop the locations of a key and of everything inside it."""
        for inside in [known for known in self.locations if known[: len(key_path)] == key_path]:
            del self.locations[inside]
