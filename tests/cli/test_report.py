"""`python -m anml report`: what it writes, and where."""

import shutil

from tests.report.conftest import SMALL, start_experiment


def test_a_copy_gets_its_report_and_the_folders_above_it_get_nothing(command, experiments, tmp_path, monkeypatch):
    monkeypatch.setattr("anml.report.write._draw", lambda *_: {})
    start_experiment(experiments / "p" / "g", SMALL).results().jobs()
    copy = shutil.copytree(experiments / "p" / "g", tmp_path / "thesis" / "p" / "g")
    assert command("report", "p/g").err == ""
    code, _, notice = command("report", copy)
    assert (code, f"note: {copy}: " in notice) == (0, True)
    pages = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("index.html"))
    assert pages == [
        "experiments/index.html", "experiments/p/g/report/index.html", "experiments/p/index.html",
        "thesis/p/g/report/index.html",
    ]  # fmt: skip
