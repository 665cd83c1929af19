"""The base of every config record, its field types, and what binds YAML data to a record.

Binding words every mistake: file, line, key, the value found, what is allowed.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError

from anml.config.yaml import KeyPath, Location, Source, value_at
from anml.plugins import is_reference

T = TypeVar("T")


class Record(BaseModel):
    """A frozen record. An unknown key or a value of another type is an error, never a guess."""

    # Built when first used: a command line needs few of the records that it imports.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


def as_list(value: Any) -> Any:
    """Return a list or tuple as it is, a single value as a list of one."""
    return value if isinstance(value, (list, tuple)) else [value]


# A single value or a list of them, always held as a tuple.
OneOrMany = Annotated[tuple[T, ...], BeforeValidator(as_list), Field(strict=False, min_length=1)]
Many = Annotated[tuple[T, ...], Field(strict=False)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
# How many of something: a number, or a fraction of all.
Amount = Annotated[
    Annotated[Count, Tag("count")] | Annotated[float, Field(gt=0, le=1), Tag("fraction")],
    Discriminator(lambda value: "fraction" if isinstance(value, float) else "count"),
]
# Arguments that another record (or torch) will check; a key without a value stands for none.
Arguments = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


def name_or_reference(names: Iterable[str]) -> AfterValidator:
    """Return what accepts one of these names, or a reference to a user's own part (plugins.py)."""

    def check(value: str) -> str:
        if value in names or is_reference(value):
            return value
        kind = "literal_error"
        raise PydanticKnownError(kind, {"expected": ", ".join(names)})

    return AfterValidator(check)


R = TypeVar("R", bound=Record)

_WANTED = {
    "int_type": "be a whole number",
    "int_from_float": "be a whole number",
    "float_type": "be a number",
    "finite_number": "be a finite number",
    "bool_type": "be true or false",
    "string_type": "be text",
    "tuple_type": "be a list",
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), "be a mapping (key: value)"),
    "empty": "hold at least one value",
    "too_short": "hold {min_length} values",
    "too_long": "hold {max_length} values",
    "greater_than": "be greater than {gt:g}",
    "greater_than_equal": "be {ge:g} or more",
    "less_than": "be less than {lt:g}",
    "less_than_equal": "be {le:g} or less",
}
_SHOWN_LENGTH = 80


def bind(
    record: type[R], source: Source, at: KeyPath = (), elsewhere: Mapping[str, str] = MappingProxyType({})
) -> tuple[R | None, list[str]]:
    """Return the record made of the data at a key path (absent: all defaults), or None and every problem found.

    elsewhere: what to say of keys that have their place, but not in this record.
    """
    data = value_at(source.data, at)
    data = {} if data is None else data
    try:
        return record.model_validate(data), []
    except ValidationError as error:
        mistakes = [e for e in error.errors() if not _is_echo(e)]
        problems = [
            problem(source, (*at, *_real_path(e["loc"], data)), _wording(e, record, elsewhere)) for e in mistakes
        ]
        return None, list(dict.fromkeys(problems))


def make_references_absolute(source: Source, keys: Iterable[KeyPath], frozen: Path | None = None) -> None:
    """Make `./FILE.py:NAME` absolute in place: it is relative to the config file that says it.

    One that the command line says is relative to the current folder. frozen: a folder of copies, which come first.
    """
    for key_path in keys:
        if "*" in key_path:
            inside = value_at(source.data, key_path[:1])
            names = inside if isinstance(inside, dict) else ()
            make_references_absolute(source, [(key_path[0], name, *key_path[2:]) for name in names], frozen)
            continue
        parent, key = value_at(source.data, key_path[:-1]), key_path[-1]
        value = parent.get(key) if isinstance(parent, dict) else None
        if isinstance(value, list):
            parent[key] = [
                absolute_reference(item, source.locate((*key_path, place)), frozen) for place, item in enumerate(value)
            ]
        elif value is not None:
            parent[key] = absolute_reference(value, source.locate(key_path), frozen)


def absolute_reference(value: Any, location: Location, frozen: Path | None = None) -> Any:
    """Return a reference with its file's absolute path, or any other value as it is. location: who says it."""
    file, _, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not file.endswith(".py"):
        return value
    folder = Path() if location.line is None else Path(location.file).parent
    path = (folder / Path(file).expanduser()).resolve()
    copy = frozen / path.name if frozen else path
    return f"{copy.resolve() if copy.is_file() else path}:{name}"


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return "; did you mean X?" for a likely typo, or the beginning of one word alone; else an empty string."""
    import difflib  # Only a mistake needs it.

    words = list(allowed)
    # `val` is meant for validation, though it has more in common with eval.
    begun = [other for other in words if len(word) > 2 and other.startswith(word)]
    close = begun if len(begun) == 1 else difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def problem(source: Source, key_path: KeyPath, message: str) -> str:
    """Word one problem of the value at a key path, with file, line and dotted key."""
    return f"{source.locate(key_path)}: {dotted(key_path)}: {message}"


def located(source: Source, problems: Iterable[str]) -> list[str]:
    """Put file and line before problems that begin with a dotted key (`eval.olft.lr: ...`)."""
    return [f"{source.locate(tuple(text.partition(':')[0].split('.')))}: {text}" for text in problems]


def dotted(key_path: KeyPath) -> str:
    """Return `eval.olft.lr` for a key path; positions in lists are written `[2]`."""
    text = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in key_path)
    return text.removeprefix(".") or "the file"


def show(value: Any) -> str:
    """Return a value in YAML's words (null, true, "text"), cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]} ..."


def _wording(error: ErrorDetails, record: type[Record], elsewhere: Mapping[str, str]) -> str:
    if error["type"] == "extra_forbidden":
        key, inside = str(error["loc"][-1]), error["loc"][:-1]
        if key in elsewhere and not inside:
            return elsewhere[key]
        allowed = _fields_at(record, inside)
        return f"unknown key{nearest(key, allowed) or '; allowed: ' + ', '.join(sorted(allowed))}"
    if error["type"] == "missing":
        return "is required but missing"
    value, details = error["input"], error.get("ctx", {})
    if error["type"] == "literal_error":
        allowed = str(details.get("expected", "")).replace(" or ", ", ").replace("'", "")
        return f"{show(value)} is not allowed; allowed: {allowed}{nearest(str(value), allowed.split(', '))}"
    if wanted := _WANTED.get(_kind_of(error)):
        if isinstance(value, (list, tuple)) and "vary" in record.model_fields and len(error["loc"]) == 1:
            key = error["loc"][0]
            return (
                f"must {wanted.format(**details)}; to train with each of {show(value)}: vary: {{{key}: {show(value)}}}"
            )
        is_unquoted = error["type"] == "string_type" and isinstance(value, (int, float))
        return f"must {wanted.format(**details)}, found {show(value)}{'; put it in quotes' if is_unquoted else ''}"
    return f"{error['msg'].removeprefix('Value error, ')}, found {show(value)}"


def _is_echo(error: ErrorDetails) -> bool:
    """Say whether a list is called too short only since values of it are wrong, each of which is a mistake itself."""
    return error["type"] == "too_short" and len(error["input"]) >= error.get("ctx", {})["min_length"]


def _kind_of(error: ErrorDetails) -> str:
    """Return pydantic's name of a mistake; a list that may be of any length but 0 is told from one of fixed length."""
    is_empty = error["type"] == "too_short" and error.get("ctx", {}).get("min_length") == 1
    return "empty" if is_empty else error["type"]


def _fields_at(record: type[Record], loc: KeyPath) -> list[str]:
    """Names of the keys allowed at a place inside a record (the records nested in mappings included)."""
    current: Any = record
    for key in loc:
        field = current.model_fields.get(str(key))
        annotation = field.annotation if field else None
        nested = (a for a in (annotation, *getattr(annotation, "__args__", ())) if _is_record(a))
        current = next(nested, current)
    return list(current.model_fields)


def _is_record(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Record)


def _real_path(loc: tuple[int | str, ...], data: Any) -> KeyPath:
    """Drop what pydantic adds to a location (names of union members): keep only steps that the data has."""
    real: list[int | str] = []
    for index, key in enumerate(loc):
        is_last = index == len(loc) - 1
        if isinstance(data, dict) and (key in data or is_last):
            real.append(key)
            data = data.get(key)
        elif isinstance(data, (list, tuple)) and isinstance(key, int) and key < len(data):
            real.append(key)
            data = data[key]
    return tuple(real)
