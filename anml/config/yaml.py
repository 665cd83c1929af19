"""Reads YAML with `!include`, merge keys and the line of every key.

It differs from plain YAML: `1e-3` is a number, `010`, `1:30` and dates are text, a key given twice is an error,
`!include other.yml` is replaced by the content of that file (a relative path is relative to the including file), and
`<<: !include base.yml` takes over the keys of a base file, which the keys beside it override; at the top of a file a
key such as `eval.olft.runs` overrides one deep inside.
"""

import contextlib
import re
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from anml.errors import ConfigError

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
        if self.line is None:
            return Rank.ON_COMMAND_LINE
        return Rank.INHERITED if self.inherited else Rank.IN_FILE

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass
class Source:
    """The data of a YAML file and the location of each of its keys. files: that file, and all that it includes."""

    data: Any
    locations: dict[KeyPath, Location] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def locate(self, key_path: KeyPath) -> Location:
        """Return the location of a key, or of the nearest enclosing one (a missing key has none of its own)."""
        while key_path and key_path not in self.locations:
            key_path = key_path[:-1]
        return self.locations.get(key_path, Location("config"))

    def forget(self, key_path: KeyPath) -> None:
        """Drop the locations of a key and of everything inside it."""
        for inside in self._inside(key_path):
            del self.locations[inside]

    def copy_locations(self, old: KeyPath, new: KeyPath) -> None:
        """Give a key, and everything inside it, the locations of another one."""
        for inside in self._inside(old):
            self.locations[(*new, *inside[len(old) :])] = self.locations[inside]

    def _inside(self, key_path: KeyPath) -> list[KeyPath]:
        return [inside for inside in self.locations if inside[: len(key_path)] == key_path]


def value_at(data: Any, key_path: KeyPath, absent: Any = None) -> Any:
    """Return the value under a key path, or `absent` where there is none."""
    for key in key_path:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return absent
    return data


class _Loader(yaml.SafeLoader):
    """A SafeLoader that takes `1e-3` for a number, and octal numbers, base-60 numbers and dates for text."""


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that `_Loader` would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape invisible characters: some line separators would be lost."""
        return self.represent_scalar(f"{_TAG}str", data, style=None if data.isprintable() else '"')


_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str")}
_INT = r"[-+]?(?:0|[1-9][\d_]*)$"
_FLOAT = (
    r"[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(?:inf|Inf|INF))$"
    r"|\.(?:nan|NaN|NAN)$"
)
# null and bool (yes, no, on and off included) are YAML 1.1's, as in PyYAML.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(_INT, re.ASCII), list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(_FLOAT, re.ASCII), list("-+.0123456789"))
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(str, _Dumper.represent_str)


_ABSENT = object()


def read_yaml(path: Path) -> Source:
    """Read a YAML file with everything it includes. Raises ConfigError with every problem, each with file and line."""
    reader = _Reader(Source(None, {(): Location(str(path), 1)}))
    reader.source.data = reader.read_file(path, ())
    reader.source.files = list(reader.nodes)
    return reader.finish()


def read_value(text: str, origin: str) -> Any:
    """Read a value given on the command line as YAML would: `1e-3`, `[1, 2]`, `true`, `some text`.

    origin: how messages call it. Raises ConfigError.
    """
    reader = _Reader(Source(None))
    if text.strip():
        path = Path(origin)
        reader.source.data = reader.enter(reader.parse(text, path), path, ("value",))  # Not the top of a file.
    # A command line has no line numbers.
    reader.problems = [problem.replace(f"{origin}:1:", f"{origin}:") for problem in reader.problems]
    return reader.finish().data


def source_of(data: Any, origin: str) -> Source:
    """Return a config that a program has made, as if it were read. Raises ConfigError for what YAML does not have.

    origin: how messages call it.
    """
    try:
        return Source(read_value(dump_yaml(data), origin), {(): Location(origin)})
    except yaml.representer.RepresenterError as error:
        message = f"{origin}: holds a {type(error.args[-1]).__name__}; use numbers, text, lists and mappings"
        raise ConfigError(message) from None


def dump_yaml(data: Any, in_flow: bool = False) -> str:
    """Return plain data as YAML that reads as the same data. in_flow: with brackets and braces."""
    # A value stays on its line, however long: two configs can then be compared line by line.
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 1_000_000}
    return yaml.dump(data, Dumper=_Dumper, default_flow_style=in_flow, **options)


def in_one_line(value: Any) -> str:
    """Return plain data as YAML in one line: `[1, 2]`, `{a: 1}`, `text`."""
    return dump_yaml(value, in_flow=True).removesuffix("...\n").strip()


class _Reader:
    """Turns YAML nodes into data, notes where each key was written, and collects problems instead of stopping."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.problems: list[str] = []
        self.nodes: dict[Path, yaml.Node | None] = {}  # By file: many flavors include the same one.
        self.files: list[Path] = []  # The file being read, after those that include it.
        self.open: list[yaml.Node] = []  # The nodes being read, outermost first.
        self.bases = 0  # How many of them are the value of a <<.
        self.scalars = _Loader("")

    def finish(self) -> Source:
        """Return what was read. Raises ConfigError with every problem."""
        if self.problems:
            raise ConfigError(self.problems)
        # A base's keys that were overridden have left their locations behind.
        for key in [key for key in self.source.locations if value_at(self.source.data, key, _ABSENT) is _ABSENT]:
            del self.source.locations[key]
        return self.source

    def read_file(self, path: Path, key_path: KeyPath) -> Any:
        """Return the content of a file; if it cannot be read, None, and note a problem."""
        if path not in self.nodes:
            self.nodes[path] = self._parse_file(path)
        return self.enter(self.nodes[path], path, key_path)

    def _parse_file(self, path: Path) -> yaml.Node | None:
        try:
            return self.parse(path.read_text(encoding="utf-8"), path)
        except OSError as error:
            return self._problem(Location(str(path)), f"cannot read this file: {error.strerror}")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            return self._problem(Location(str(path), line), "not UTF-8 text; save the file as UTF-8")

    def parse(self, text: str, path: Path) -> yaml.Node | None:
        try:
            node = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError as error:
            return self._problem(Location(str(path), _line(error, text)), f"not valid YAML: {_reason(error)}")
        return node or self._problem(Location(str(path)), "this file is empty")

    def enter(self, node: yaml.Node | None, path: Path, key_path: KeyPath) -> Any:
        """Return the data of a node in a file, which its !includes are relative to."""
        if node is None:
            return None
        self.files.append(path)
        data = self._build(node, key_path)
        self.files.pop()
        return data

    def _build(self, node: yaml.Node, key_path: KeyPath) -> Any:
        if node in self.open:
            return self._problem(node, "an alias (*name) may not stand inside what it refers to")
        self.open.append(node)
        data = self._value(node, key_path)
        self.open.pop()
        return data

    def _value(self, node: yaml.Node, key_path: KeyPath) -> Any:
        if node.tag == "!include":
            return self._include(node, key_path)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, key_path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            self.source.locations |= {(*key_path, i): self._location(child) for i, child in enumerate(node.value)}
            return [self._build(child, (*key_path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN_TAGS:
            with contextlib.suppress(ValueError, KeyError):
                return self.scalars.construct_object(node)
        tag = node.tag.replace(_TAG, "!!")
        return self._problem(node, f"{tag} cannot be used here; write plain YAML, or !include FILE")

    def _include(self, node: yaml.Node, key_path: KeyPath) -> Any:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            return self._problem(node, "!include takes the name of one file")
        path = self.files[-1].parent / Path(node.value).expanduser()
        if not path.is_file():
            return self._problem(node, f"!include {node.value}: there is no file {path}")
        if path.resolve() in [file.resolve() for file in self.files]:
            chain = " -> ".join(file.name for file in (*self.files, path))
            return self._problem(node, f"this file includes itself: {chain}; remove an !include")
        return self.read_file(path, key_path)

    def _mapping(self, node: yaml.MappingNode, key_path: KeyPath) -> dict[str, Any]:
        pairs = self._own_keys(node)
        base = pairs.pop("<<", (node, None))[1]
        data = {} if base is None else self._merged(base, key_path)
        # Keys that reach inside others come last; below the top of a file a dot has no meaning.
        for key in pairs if key_path else sorted(pairs, key=lambda key: "." in key):
            key_node, child = pairs[key]
            target, at = data, (*key_path, key)
            if not key_path and "." in key:
                try:
                    target, at = _holder(data, key)
                except ValueError as error:
                    self._problem(key_node, f"{key}: {error}")
                    continue
                self.source.forget(at)
            target[str(at[-1])] = self._build(child, at)
            # The line of the key, even if the value stands in an included file.
            self.source.locations[at] = self._location(key_node)
        return data

    def _own_keys(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the nodes of a mapping's keys and values, by key. A key is text, whatever it looks like."""
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, child in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, "a key must be plain text")
            elif key_node.value in pairs:
                advice = "merge several with <<: [FIRST, SECOND]" if key_node.value == "<<" else "keep one of them"
                self._problem(key_node, f"{key_node.value} is given twice; {advice}")
            else:
                pairs[key_node.value] = (key_node, child)
        return pairs

    def _merged(self, node: yaml.Node, key_path: KeyPath) -> dict[str, Any]:
        """Return the keys of a base, or of several; the first overrides the others."""
        is_list = isinstance(node, yaml.SequenceNode) and node.tag != "!include"
        data: dict[str, Any] = {}
        for child in reversed(node.value) if is_list else [node]:
            count = len(self.problems)
            self.bases += 1
            base = self._build(child, key_path)
            self.bases -= 1
            if isinstance(base, dict):
                data |= base
            elif len(self.problems) == count:
                self._problem(child, "<< takes a mapping, an alias of one, or an !include of one")
        return data

    def _location(self, node: yaml.Node) -> Location:
        inherited = self.bases > 0 or len(self.files) > 1
        return Location(str(self.files[-1]), node.start_mark.line + 1, inherited)

    def _problem(self, at: yaml.Node | Location, message: str) -> None:
        self.problems.append(f"{self._location(at) if isinstance(at, yaml.Node) else at}: {message}")


def _holder(data: dict[str, Any], key: str) -> tuple[dict[str, Any], KeyPath]:
    """Return the mapping whose last key a dotted key names, and the key path of that last key.

    In a list of mappings (`- olft: {...}`) the item with the key is meant; a last key that none of them has becomes a
    new item. Raises ValueError, in words, where something on the way is not there.
    """
    *parents, last = key.split(".")
    target: Any = data
    at: KeyPath = ()
    for depth, part in enumerate(parents):
        keys = {name: (mapping, steps) for mapping, steps in _mappings(target) for name in mapping}
        if part not in keys:
            there_are = f"there are: {', '.join(keys)}" if keys else "nothing is inside it"
            message = f"there is no {part!r} in {'.'.join(parents[:depth]) or 'the file'}; {there_are}"
            raise ValueError(message)
        mapping, steps = keys[part]
        target, at = mapping[part], (*at, *steps, part)
    if not isinstance(target, (dict, list)):
        message = f"{'.'.join(parents)} holds no keys, so nothing inside it can be set"
        raise ValueError(message)
    for mapping, steps in _mappings(target):
        if last in mapping or mapping is target:
            return mapping, (*at, *steps, last)
    assert isinstance(target, list)
    target.append({})
    return target[-1], (*at, len(target) - 1, last)


def _mappings(target: Any) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    """Return the mappings that keys are looked up in: a mapping itself, or those in a list with their positions."""
    if isinstance(target, list):
        return [(item, (index,)) for index, item in enumerate(target) if isinstance(item, dict)]
    return [(target, ())] if isinstance(target, dict) else []


def _line(error: yaml.YAMLError, text: str) -> int:
    """Return the line of a syntax error, from 1."""
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return mark.line + 1 if mark else 1


def _reason(error: yaml.YAMLError) -> str:
    """Return what is wrong in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character U+{error.character:04X} cannot stand in a file; remove it"
    mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    context = getattr(error, "context", None)
    if context and mark and start and start.line != mark.line:
        context += f" that begins in line {start.line + 1}"
    text = ", ".join(part for part in (context, getattr(error, "problem", None)) if part)
    return text + ("; indent with spaces" if r"'\t'" in text else "")
