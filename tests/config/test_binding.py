"""The wording of mistakes: what, where, what is allowed."""

from collections.abc import Mapping
from typing import Annotated, Literal

import pytest
from pydantic import Field

from anml.config.binding import (
    Arguments,
    Count,
    Many,
    NotNegative,
    OneOrMany,
    Rate,
    Record,
    bind,
    located,
    nearest,
    show,
)
from anml.config.yaml import Source, read_yaml


class Part(Record):
    size: Count = 1


class Whole(Record):
    part: Part = Part()
    parts: Mapping[str, Part] = {}
    shape: Literal["round", "square"] = "round"
    rate: Rate = 1.0
    count: NotNegative = 0
    name: str = ""
    flag: bool = False
    sizes: OneOrMany[Count] = (1,)
    pair: Annotated[Many[Count], Field(min_length=2, max_length=2)] = (1, 1)
    more: Arguments = {}


def said(write, text: str) -> list[str]:
    whole, problems = bind(Whole, read_yaml(write("a.yml", text)))
    assert whole is None
    return problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count: x", 'count: must be a whole number, found "x"'),
        ("count: 1.0", "count: must be a whole number, found 1.0"),
        ("count: 1e3", "count: must be a whole number, found 1000.0"),
        ("count: true", "count: must be a whole number, found true"),
        ("count:", "count: must be a whole number, found null"),
        ("count: -1", "count: must be 0 or more, found -1"),
        ("rate: 0", "rate: must be greater than 0, found 0"),
        ("rate: .nan", "rate: must be a finite number, found NaN"),
        ('rate: "0.1"', 'rate: must be a number, found "0.1"'),
        ("name: 12", "name: must be text, found 12; put it in quotes"),
        ("name: [a]", 'name: must be text, found ["a"]'),
        ("flag: 1", "flag: must be true or false, found 1"),
        ("sizes: []", "sizes: must hold at least one value, found []"),
        ("sizes: [1, 0]", "sizes[1]: must be 1 or more, found 0"),
        ("pair: [1, 2, 3]", "pair: must hold 2 values, found [1, 2, 3]"),
        ("pair: [1]", "pair: must hold 2 values, found [1]"),
        ("pair: [1, x]", 'pair[1]: must be a whole number, found "x"'),
        ("sizes: 0", "sizes: must be 1 or more, found 0"),
        ("more: [1]", "more: must be a mapping (key: value), found [1]"),
        ("part: 3", "part: must be a mapping (key: value), found 3"),
        ("shape: sqare", "shape: \"sqare\" is not allowed; allowed: round, square; did you mean 'square'?"),
        ("shape:", "shape: null is not allowed; allowed: round, square"),
        ("shape: [round]", "shape: [\"round\"] is not allowed; allowed: round, square; did you mean 'round'?"),
        ("nmae: x", "nmae: unknown key; did you mean 'name'?"),
        ("part: {sise: 1}", "part.sise: unknown key; did you mean 'size'?"),
        ("parts: {a: {sise: 1}}", "parts.a.sise: unknown key; did you mean 'size'?"),
        ("parts: {a: {xyz: 1}}", "parts.a.xyz: unknown key; allowed: size"),
    ],
)
def test_one_mistake_is_one_sentence(write, text: str, message: str) -> None:
    assert said(write, text) == [f"a.yml:1: {message}"]


def test_all_mistakes_come_at_once(write) -> None:
    assert len(said(write, "count: x\nrate: 0\nparts:\n  a: {size: 0}\nxyz: 1\n")) == 4


def test_a_missing_key_is_named_in_full() -> None:
    class Needs(Record):
        key: int

    assert bind(Needs, Source({"at": {}}), ("at",))[1] == ["config: at.key: is required but missing"]


def test_absent_data_are_all_defaults() -> None:
    assert bind(Whole, Source({}), ("part",)) == (Whole(), [])


def test_a_key_of_arguments_without_a_value_is_none() -> None:
    whole, _ = bind(Whole, Source({"more": None}))
    assert whole is not None
    assert whole.more == {}


def test_values_are_shown_in_the_words_of_yaml() -> None:
    assert [show(value) for value in (None, True, "é", (1, 2.5), {"a": None})] == [
        "null", "true", '"é"', "[1, 2.5]", '{"a": null}',
    ]  # fmt: skip


def test_a_long_value_is_cut() -> None:
    assert len(show("x" * 1000)) < 100


def test_nothing_is_suggested_for_nonsense() -> None:
    assert nearest("zzzz", ["rate", "count"]) == ""


def test_the_beginning_of_one_word_is_taken_for_it() -> None:
    assert nearest("val", ["eval", "validation"]) == "; did you mean 'validation'?"
    assert nearest("val", ["vale", "valid"]) == "; did you mean 'vale'?"


def test_later_problems_get_file_and_line(write) -> None:
    source = read_yaml(write("a.yml", "x: 1\neval:\n  olft:\n    lr: 1\n"))
    assert located(source, ["eval.olft.lr: is odd", "absent: is odd"]) == [
        "a.yml:4: eval.olft.lr: is odd", "a.yml:1: absent: is odd",
    ]  # fmt: skip
