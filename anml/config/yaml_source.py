"""YAML with `!include`, merge keys and a line number for every key.

What differs from plain YAML: `1e-3` is a number, a key given twice is an error, `!include other.yml` is replaced by the
content of that file (a relative path is relative to the including file), and `<<: !include base.yml` takes over the
keys of a base file, which the keys beside it override.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from anml.errors import ConfigError

KeyPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Location:
    """Where a value was written: a file and a line (from 1), or the command line."""

    file: str
    line: int | None = None

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


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads `1e-3` as a float (YAML 1.1 makes a string of it)."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> Source:
    """Read a YAML file with everything it includes. Raises ConfigError naming file and line."""
    source = Source(None)
    source.data = _read_file(path, (), (), source)
    return source


def parse_scalar(text: str) -> Any:
    """Read a value given on the command line as YAML would: `1e-3`, `[1, 2]`, `true`, `some text`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _build(node, Path("--set"), (), (), Source(None))
    except yaml.YAMLError as error:
        message = f"cannot read the value {text!r} as YAML: {_reason(error)}"
        raise ConfigError(message) from None


def _read_file(path: Path, stack: tuple[Path, ...], key_path: KeyPath, source: Source) -> Any:
    resolved = path.resolve()
    if resolved in stack:
        chain = " -> ".join(p.name for p in (*stack, resolved))
        message = f"{path}: includes itself: {chain}. Remove one of these !include lines."
        raise ConfigError(message)
    source.locations.setdefault(key_path, Location(str(path), 1))
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        message = f"{_mark(path, error)}: not valid YAML: {_reason(error)}"
        raise ConfigError(message) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"{path}: cannot read this file: {reason}"
        raise ConfigError(message) from None
    return {} if node is None else _build(node, path, (*stack, resolved), key_path, source)


def _mark(path: Path, error: yaml.YAMLError) -> Location:
    mark = getattr(error, "problem_mark", None)
    return Location(str(path), mark.line + 1 if mark else None)


def _reason(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error)


def _build(node: yaml.Node, path: Path, stack: tuple[Path, ...], key_path: KeyPath, source: Source) -> Any:
    if node.tag == "!include":
        return _include(node, path, stack, key_path, source)
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, stack, key_path, source)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            source.locations[(*key_path, index)] = _location(child, path)
            items.append(_build(child, path, stack, (*key_path, index), source))
        return items
    return _build_scalar(node, path)


def _include(node: yaml.Node, path: Path, stack: tuple[Path, ...], key_path: KeyPath, source: Source) -> Any:
    included = path.parent / str(node.value)
    if not included.is_file():
        message = f"{_location(node, path)}: !include {node.value}: there is no file {included}"
        raise ConfigError(message)
    return _read_file(included, stack, key_path, source)


def _build_mapping(
    node: yaml.MappingNode, path: Path, stack: tuple[Path, ...], key_path: KeyPath, source: Source
) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    own: dict[str, yaml.Node] = {}
    for key_node, child in node.value:
        key = str(key_node.value)
        if key in own:
            message = f"{_location(key_node, path)}: {key} is given twice; keep one of them"
            raise ConfigError(message)
        own[key] = key_node
        if key == "<<":
            merged |= _merge_base(child, path, stack, key_path, source)
    for key_node, child in node.value:
        key = str(key_node.value)
        if key == "<<":
            continue
        for stale in [k for k in source.locations if k[: len(key_path) + 1] == (*key_path, key)]:
            del source.locations[stale]
        source.locations[(*key_path, key)] = _location(key_node, path)
        merged[key] = _build(child, path, stack, (*key_path, key), source)
        source.locations[(*key_path, key)] = _location(key_node, path)
    return merged


def _merge_base(node: yaml.Node, path: Path, stack: tuple[Path, ...], key_path: KeyPath, source: Source) -> dict:
    base = _build(node, path, stack, key_path, source)
    bases = base if isinstance(base, list) else [base]
    if not all(isinstance(b, dict) for b in bases):
        message = f"{_location(node, path)}: << takes a mapping or an !include of one"
        raise ConfigError(message)
    return {key: value for b in reversed(bases) for key, value in b.items()}


def _build_scalar(node: yaml.Node, path: Path) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError):
        message = f"{_location(node, path)}: {node.tag} {node.value!r} is not allowed here; use plain YAML and !include"
        raise ConfigError(message) from None


def _location(node: yaml.Node, path: Path) -> Location:
    return Location(str(path), node.start_mark.line + 1)
