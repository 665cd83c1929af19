"""`python -m anml compare`: which experiments are meant, and what is wrong with a command."""

import shutil
from pathlib import Path

import pytest

from anml.cli.main import main
from anml.errors import ConfigError
from tests.report.conftest import SMALL, start_experiment


@pytest.fixture
def filled(experiments: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of experiments: three of project `demo` with results, one of `other`, and one without."""
    monkeypatch.setattr("anml.report.comparison._draw", lambda *_: {})
    monkeypatch.setattr("anml.report.comparison.comparison_curves", lambda _: [])
    for name in ("demo/b", "demo/a", "demo/c", "other/d"):
        start_experiment(experiments / name, SMALL).results().jobs()
    start_experiment(experiments / "demo" / "waiting", SMALL).jobs()
    return experiments


def rows(text: str) -> list[str]:
    """Return the second column of the list of experiments that a comparison begins with."""
    return [line.split()[2] for line in text.split("\n\n")[1].splitlines()[1:]]


def test_a_project_is_all_its_experiments_with_results(filled, capsys):
    assert main(["compare", "demo"]) == 0
    printed = capsys.readouterr().out
    assert rows(printed) == ["demo/a", "demo/b", "demo/c"]
    assert f"Comparison: {filled / 'demo' / 'comparison.html'}" in printed
    assert "demo/waiting" in (filled / "demo" / "comparison.html").read_text()
    assert 'href="comparison.html"' in (filled / "demo" / "index.html").read_text()


def test_experiments_come_in_the_order_given_each_once(filled, capsys):
    assert main(["compare", "demo/c", str(filled / "demo" / "a"), "demo/c", "--experiments-dir", str(filled)]) == 0
    assert rows(capsys.readouterr().out) == ["demo/c", "demo/a"]


def test_the_page_says_how_to_write_it_again(filled):
    main(["compare", "demo", "--flavor", "olft"])
    assert "python -m anml compare demo --flavor olft" in (filled / "demo" / "comparison.html").read_text()


def test_experiments_of_several_projects_need_a_place_to_write_to(filled, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"several projects \(demo, other\): say where to write, with --output DIR"):
        main(["compare", "demo/a", "other"])
    assert main(["compare", "demo/a", "other", "--output", str(tmp_path / "here")]) == 0
    assert rows(capsys.readouterr().out) == ["demo/a", "other/d"]
    assert (tmp_path / "here" / "comparison.csv").is_file()
    assert not (filled / "demo" / "comparison.html").exists()
    assert not (filled / "demo" / "index.html").exists()


def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(filled, tmp_path, command):
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "comparison.csv").mkdir(parents=True)
    for output, named in (("file", "file"), ("taken", "taken/comparison.csv")):
        shown = command("compare", "demo", "--output", tmp_path / output)
        assert (shown.code, f"--output {tmp_path / named}" in shown.err) == (2, True)
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["comparison.csv"]


def test_of_a_folder_only_figures_of_the_earlier_page_are_removed(filled, tmp_path):
    ours, users = tmp_path / "comparison-classes-old.png", tmp_path / "comparison-classes-by-hand.png"
    for path in (ours, users):
        path.touch()
    (tmp_path / "comparison.html").write_text('<img src="comparison-classes-old.png" width="9">')
    assert main(["compare", "demo", "--output", str(tmp_path)]) == 0
    assert [path.exists() for path in (ours, users)] == [False, True]


def test_experiments_outside_the_folder_of_experiments_need_a_place_to_write_to(filled, tmp_path):
    shutil.copytree(filled / "demo", tmp_path / "copies")
    with pytest.raises(ConfigError, match="--output DIR"):
        main(["compare", str(tmp_path / "copies")])
    assert not list(tmp_path.glob("copies/*.html"))
    assert main(["compare", str(tmp_path / "copies"), "--output", str(tmp_path / "here")]) == 0


def test_unknown_names_are_told_together(filled):
    with pytest.raises(ConfigError) as caught:
        main(["compare", "demos", "demo/x", "nothing"])
    typo, group, project = list(caught.value.problems)
    assert typo == f"no project demos in {filled}; did you mean 'demo'?"
    assert group.startswith(f"no experiment demo/x in {filled}")
    assert project == f"no project nothing in {filled}; there are: demo, other"


def test_a_lone_experiment_and_one_without_results(filled):
    with pytest.raises(ConfigError, match="only other/d has results; a comparison takes two or more"):
        main(["compare", "other"])
    with pytest.raises(ConfigError, match="no experiment has results yet"):
        main(["compare", "demo/waiting"])


def test_mistakes_end_with_code_2_and_no_traceback(experiments, run):
    start_experiment(experiments / "demo" / "a", SMALL).results()
    mistakes = {"nowhere": "no project nowhere", "demo": "a comparison takes two or more", "--flavour": "usage"}
    for argument, words in mistakes.items():
        done = run("-m", "anml", "compare", argument)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr
