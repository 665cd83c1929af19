"""YAML as people write it: numbers, includes, merge keys, and mistakes with their lines."""

from pathlib import Path

import pytest

from anml.config.yaml import dump_yaml, read_value, read_yaml
from anml.errors import ConfigError


def wrong(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E3", 1000.0), (".5", 0.5), ("5.e-4", 0.0005), ("-2.5", -2.5), ("1_000", 1000), ("12", 12),
        ("1e5", 100000.0), ("0", 0), ("yes", True), ("Off", False), ("true", True), ("~", None), ("", None),
        ("010", "010"), ("1:30", "1:30"), ("2:00:00", "2:00:00"), ("2024-01-31", "2024-01-31"), ("0x1F", "0x1F"),
        ('"0.1"', "0.1"), ("1,5", "1,5"), ("a b", "a b"), ("=", "="), ("[1, x]", [1, "x"]), ("{a: 1}", {"a": 1}),
    ],
)  # fmt: skip
def test_scalars_are_what_a_person_means(text: str, value: object) -> None:
    assert read_value(text, "--set a") == value


@pytest.mark.parametrize("text", ["1e3", "1e-3", "yes", "null", "~", "12", ".5", "", "2024-01-31", "010", "!include a"])
def test_text_that_looks_like_something_else_survives_a_dump(text: str) -> None:
    assert read_value(dump_yaml([text]), "dump") == [text]


def test_every_key_knows_its_file_and_line(write) -> None:
    write("sub/rates.yml", "- 0.1\n- 0.2\n")
    source = read_yaml(write("a.yml", "x:\n  y: 1\nrates: !include sub/rates.yml\n"))
    assert [str(source.locate(key)) for key in [("x", "y"), ("rates",), ("rates", 1)]] == [
        "a.yml:2", "a.yml:3", "sub/rates.yml:2",
    ]  # fmt: skip


def test_a_missing_key_has_the_line_of_what_encloses_it(write) -> None:
    source = read_yaml(write("a.yml", "a: 1\nx:\n  y: 1\n"))
    assert str(source.locate(("x", "z"))) == "a.yml:2"


def test_include_is_relative_to_the_including_file(write) -> None:
    write("sub/b.yml", "c: !include deeper/d.yml\n")
    write("sub/deeper/d.yml", "[1]\n")
    assert read_yaml(write("a.yml", "b: !include sub/b.yml\n")).data == {"b": {"c": [1]}}


def test_include_takes_an_absolute_path(write, here: Path) -> None:
    write("b.yml", "[1]\n")
    assert read_yaml(write("sub/a.yml", f"b: !include {here / 'b.yml'}\n")).data == {"b": [1]}


def test_missing_includes_are_all_named(write) -> None:
    assert wrong(write("a.yml", "b: !include no.yml\nc: [!include sub/no.yml]\n")) == [
        "a.yml:1: !include no.yml: there is no file no.yml",
        "a.yml:2: !include sub/no.yml: there is no file sub/no.yml",
    ]


def test_an_include_cycle_is_shown(write) -> None:
    write("b.yml", "\nx: !include a.yml\n")
    assert wrong(write("a.yml", "x: !include b.yml\n")) == [
        "b.yml:2: this file includes itself: a.yml -> b.yml -> a.yml; remove an !include"
    ]


@pytest.mark.parametrize("include", ["!include", "!include [b.yml]", "!include {b: 1}"])
def test_include_takes_one_name(write, include: str) -> None:
    assert wrong(write("a.yml", f"x: {include}\n")) == ["a.yml:1: !include takes the name of one file"]


def test_keys_beside_a_merge_override_the_base(write) -> None:
    write("base.yml", "a: 1\nb: {c: 1, d: 2}\n")
    assert read_yaml(write("a.yml", "b: {c: 3}\n<<: !include base.yml\n")).data == {"a": 1, "b": {"c": 3}}


def test_the_first_of_several_bases_has_the_last_word(write) -> None:
    write("one.yml", "a: 1\n")
    write("two.yml", "a: 2\nb: 2\n")
    source = read_yaml(write("a.yml", "<<: [!include one.yml, !include two.yml]\n"))
    assert (source.data, str(source.locate(("a",))), str(source.locate(("b",)))) == (
        {"a": 1, "b": 2}, "one.yml:1", "two.yml:2",
    )  # fmt: skip


def test_an_overridden_key_leaves_no_location_behind(write) -> None:
    write("base.yml", "a: 1\nb:\n  c: 1\n")
    source = read_yaml(write("a.yml", "<<: !include base.yml\nb: {}\n"))
    assert str(source.locate(("b", "c"))) == "a.yml:2"


BASE = "eval:\n  - a: {runs: 1, lr: [1, 2]}\n  - b: {runs: 1}\nargs: {x: 1, y: {z: 1}}\nnothing:\n"


def test_a_dotted_key_overrides_one_inside_the_base(write) -> None:
    write("base.yml", BASE)
    source = read_yaml(
        write("a.yml", "<<: !include base.yml\neval.b.runs: 3\nargs.y.z: 2\nargs.w: 5\neval.c: {d: 1}\n")
    )
    assert source.data == {
        "eval": [{"a": {"runs": 1, "lr": [1, 2]}}, {"b": {"runs": 3}}, {"c": {"d": 1}}],
        "args": {"x": 1, "y": {"z": 2}, "w": 5},
        "nothing": None,
    }
    places = [("eval", 1, "b", "runs"), ("args", "y", "z"), ("eval", 2, "c", "d"), ("eval", 0, "a", "lr", 0)]
    assert [str(source.locate(place)) for place in places] == ["a.yml:2", "a.yml:3", "a.yml:5", "base.yml:2"]


def test_a_dotted_key_overrides_what_stands_beside_it_whatever_the_order(write) -> None:
    assert read_yaml(write("a.yml", "args.x: 2\nargs: {x: 1}\n")).data == {"args": {"x": 2}}


def test_dotted_keys_of_a_base_are_overridden_as_a_whole(write) -> None:
    write("base.yml", f"{BASE}args.x: 2\n")
    assert read_yaml(write("a.yml", "<<: !include base.yml\nargs: {x: 3}\n")).data["args"] == {"x": 3}
    assert read_yaml(write("b.yml", "<<: !include base.yml\nargs.x: 4\n")).data["args"]["x"] == 4


def test_a_dotted_key_replaces_what_it_names(write) -> None:
    source = read_yaml(write("a.yml", f"{BASE}eval.a: {{runs: 7}}\n"))
    assert source.data["eval"][0] == {"a": {"runs": 7}}
    assert ("eval", 0, "a", "lr") not in source.locations


def test_one_file_of_flavors_is_changed_for_one_user_alone(write) -> None:
    write("flavors.yml", "- a: {runs: 1}\n")
    text = "first: !include flavors.yml\nsecond: !include flavors.yml\nfirst.a.runs: 2\n"
    assert read_yaml(write("a.yml", text)).data == {"first": [{"a": {"runs": 2}}], "second": [{"a": {"runs": 1}}]}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("eval.c.runs", "there is no 'c' in eval; there are: a, b"),
        ("evil.a.runs", "there is no 'evil' in the file; there are: eval, args, nothing"),
        ("args.y.w.v", "there is no 'w' in args.y; there are: z"),
        ("args.x.y", "args.x holds no keys, so nothing inside it can be set"),
        ("args.x.y.z", "there is no 'y' in args.x; nothing is inside it"),
        ("nothing.x", "nothing holds no keys, so nothing inside it can be set"),
        (".", "there is no '' in the file; there are: eval, args, nothing"),
    ],
)
def test_a_dotted_key_that_leads_nowhere_is_explained(write, key: str, message: str) -> None:
    assert wrong(write("a.yml", f"{BASE}{key}: 3\n")) == [f"a.yml:6: {key}: {message}"]


def test_a_dot_below_the_top_is_part_of_a_name(write) -> None:
    assert read_yaml(write("a.yml", "eval: {v1.2: {runs: 1}}\n")).data == {"eval": {"v1.2": {"runs": 1}}}
    assert read_value("{v1.2: 3}", "--set eval") == {"v1.2": 3}


def test_an_alias_merges_and_repeats(write) -> None:
    path = write("a.yml", "x: &small {a: 1}\ny: *small\nz: {<<: *small, b: 2}\n")
    assert read_yaml(path).data == {"x": {"a": 1}, "y": {"a": 1}, "z": {"a": 1, "b": 2}}


@pytest.mark.parametrize("text", ["x: &a [*a]", "x: &a {y: *a}", "x: &a {<<: *a}", "x: &a {<<: [*a]}"])
def test_an_alias_inside_itself_is_refused(write, text: str) -> None:
    assert wrong(write("a.yml", text)) == ["a.yml:1: an alias (*name) may not stand inside what it refers to"]


@pytest.mark.parametrize("base", ["3", "[1, 2]", "", "text"])
def test_only_mappings_merge(write, base: str) -> None:
    assert wrong(write("a.yml", f"<<: {base}\n")) == [
        "a.yml:1: << takes a mapping, an alias of one, or an !include of one"
    ]


def test_every_duplicate_key_is_reported(write) -> None:
    assert wrong(write("a.yml", "a: 1\nb: {c: 1, c: 2}\na: 2\n<<: {x: 1}\n<<: {y: 1}\n")) == [
        "a.yml:3: a is given twice; keep one of them",
        "a.yml:5: << is given twice; merge several with <<: [FIRST, SECOND]",
        "a.yml:2: c is given twice; keep one of them",
    ]


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("x: !!python/object/apply:os.system [ls]", "!!python/object/apply:os.system"),
        ("x: !mine {a: 1}", "!mine"),
        ("x: !!binary aGk=", "!!binary"),
        ("x: !!set {a}", "!!set"),
        ("x: !!int abc", "!!int"),
        ("x: !!bool maybe", "!!bool"),
    ],
)
def test_tags_beyond_include_are_refused(write, text: str, tag: str) -> None:
    assert wrong(write("a.yml", text)) == [f"a.yml:1: {tag} cannot be used here; write plain YAML, or !include FILE"]


@pytest.mark.parametrize("text", ["[a, b]: 1\n", "? {a: 1}\n: 1\n"])
def test_keys_are_plain_text(write, text: str) -> None:
    assert wrong(write("a.yml", text)) == ["a.yml:1: a key must be plain text"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:\n\tb: 1\n", "a.yml:2: .*indent with spaces"),
        ("a: {b: 1\nc: 2\n", "a.yml:2: .*begins in line 1.*expected ',' or '}'"),
        ("a: 1\n---\na: 2\n", "a.yml:2: .*found another document"),
        ("a: *b\n", "a.yml:1: .*undefined alias 'b'"),
        ("a: 1\nb: \x07\n", r"a.yml:2: .*U\+0007 cannot stand in a file"),
        ("", "a.yml: this file is empty"),
        ("# only a comment\n", "a.yml: this file is empty"),
    ],
)
def test_broken_yaml_is_told_with_its_line(write, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_yaml(write("a.yml", text))


def test_text_in_another_encoding_is_told_with_its_line(here: Path) -> None:
    path = Path("a.yml")
    path.write_bytes("a: 1\nb: caf\xe9\n".encode("latin-1"))
    assert wrong(path) == ["a.yml:2: not UTF-8 text; save the file as UTF-8"]


def test_windows_line_ends_and_byte_order_marks_are_fine(here: Path) -> None:
    path = Path("a.yml")
    path.write_bytes("\ufeffa: 1\r\nb: 2\r\n".encode())
    assert read_yaml(path).data == {"a": 1, "b": 2}


def test_problems_of_several_files_come_together(write) -> None:
    write("b.yml", "x: [1\n")
    assert len(wrong(write("a.yml", "b: !include b.yml\nc: !include no.yml\nd: !mine 1\n"))) == 3


def test_a_file_that_is_not_there_is_said_so(here: Path) -> None:
    assert wrong(Path("no.yml")) == ["no.yml: cannot read this file: No such file or directory"]
