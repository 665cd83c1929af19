import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from anml.atomic import read_json, write_json, write_text
from anml.experiment import Experiment
from anml.report import index
from tests.report.conftest import report

pytestmark = pytest.mark.usefixtures("no_figures")


def launched(builder, time: str) -> None:
    environment = read_json(builder.experiment.environment_file)
    write_json(builder.experiment.environment_file, environment | {"launched": time})


def test_newest_first_with_results_state_and_link(build):
    old = build(group="old-1").results().jobs()
    new = build(group="new-2").results().jobs(olft_step_000600="failed")
    launched(new, "2025-06-01T10:00:00+02:00")
    for builder in (old, new):
        report(builder)
    page = (old.experiment.root.parent / "index.html").read_text()
    assert page.index("new-2") < page.index("old-1")
    assert "2025-06-01 08:00" in page
    assert 'href="old-1/report/index.html"' in page
    assert "1 of 8 jobs did not succeed" in page
    point = next(p for p in report(old).results if (p.flavor, p.checkpoint_step) == ("olft", 600))
    assert f"{point.test_acc:.3f} ± {point.test_ci95:.3f}" in page
    assert "20 classes" in page
    assert "glyphs" in page


def test_all_projects_are_listed_even_without_reports(build):
    build(project="waiting", group="slow-1").jobs()
    done = build(project="done", group="quick-1").results().jobs()
    report(done)
    page = (done.experiment.root.parent.parent / "index.html").read_text()
    assert 'href="done/quick-1/report/index.html"' in page
    assert "slow-1" in page
    assert 'slow-1/report/index.html"' not in page
    assert 'href="waiting/index.html"' in page


def test_a_report_older_than_its_jobs_is_told(build):
    builder = build().results().jobs()
    report(builder)
    index.write_indexes(builder.experiment)
    page = builder.experiment.root.parent / "index.html"
    assert "older than its jobs" not in page.read_text()
    status = next(builder.experiment.jobs.glob("olft*/status.json"))
    write_json(status, read_json(status))  # It has run again.
    index.write_indexes(builder.experiment)
    assert "older than its jobs" in page.read_text()


def test_results_are_read_again_for_an_index_only_if_they_have_changed(build, monkeypatch):
    builder = build().results().jobs()
    report(builder)
    index.write_indexes(builder.experiment)
    read = []
    monkeypatch.setattr(index, "read_summary", lambda path: read.append(path) or [])
    index.write_indexes(builder.experiment)
    assert read == []
    os.utime(builder.experiment.report / "summary.csv", (1, 1))
    index.write_indexes(builder.experiment)
    assert read == [builder.experiment.report / "summary.csv"]


def test_an_old_config_and_foreign_folders_do_no_harm(build):
    builder = build().results().jobs()
    experiments = builder.experiment.root.parent.parent
    write_text(experiments / "demo" / "ancient-1" / "config.yml", "model: nonml\nsomething: gone\n")
    write_text(experiments / "demo" / "broken-2" / "config.yml", "{ not yaml\n")
    write_text(experiments / "README.md", "about this folder")
    (experiments / "empty").mkdir()
    report(builder)
    page = (experiments / "index.html").read_text()
    assert "ancient-1" in page
    assert "nonml" in page
    assert "broken-2" in page


def test_what_is_written_meanwhile_is_not_lost(build, monkeypatch):
    first = build(group="first-1").results().jobs()
    second = build(group="second-2").results().jobs()
    report(first)
    report(second)
    (second.experiment.report / "index.html").rename(second.experiment.report / "hidden.html")
    page = first.experiment.root.parent / "index.html"
    texts = []

    def write(path, text):
        # Another report appears between this job's look and its write.
        hidden = second.experiment.report / "hidden.html"
        if hidden.exists():
            hidden.rename(second.experiment.report / "index.html")
        texts.append(text)
        write_text(path, text)

    monkeypatch.setattr(index, "write_text", write)
    index.write_indexes(first.experiment)
    assert "second-2/report" not in texts[0]
    assert "second-2/report/index.html" in page.read_text()


def test_many_writers_at_once(build):
    writers = 6
    builders = [build(group=f"group-{number}").results(["no-sgd"]).jobs() for number in range(writers)]
    for builder in builders:
        write_text(builder.experiment.report / "index.html", "a report")
    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(index.write_indexes, [builder.experiment for builder in builders]))
    for page in ("index.html", "demo/index.html"):
        text = (builders[0].experiment.root.parent.parent / page).read_text()
        assert all(f"group-{number}/report/index.html" in text for number in range(writers))
        assert text.rstrip().endswith("</html>")


def test_nothing_is_written_above_a_copy(build, tmp_path):
    original = build().results().jobs()
    report(original)
    copy = Experiment(tmp_path / "elsewhere" / "demo" / "quiet-otter-1")
    shutil.copytree(original.experiment.root, copy.root)
    (notice,) = index.write_indexes(copy, in_force=tmp_path / "experiments")
    assert str(copy.root) in notice
    assert list((tmp_path / "elsewhere").rglob("index.html")) == [copy.report / "index.html"]


def test_the_folder_of_experiments_in_force_gets_its_pages_wherever_it_was_moved(build, tmp_path):
    report(build().results().jobs())
    moved = (tmp_path / "experiments").rename(tmp_path / "archive")
    for page in (moved / "index.html", moved / "demo" / "index.html"):
        page.unlink()
    assert index.write_indexes(Experiment(moved / "demo" / "quiet-otter-1"), in_force=moved) == []
    assert "quiet-otter-1" in (moved / "index.html").read_text()
    assert "quiet-otter-1" in (moved / "demo" / "index.html").read_text()


def test_a_project_on_another_disk_is_listed_where_its_link_is(build, tmp_path):
    builder = build().results().jobs()
    project = builder.experiment.root.parent
    disk = tmp_path / "disk" / "demo"
    shutil.copytree(project, disk)
    shutil.rmtree(project)
    project.symlink_to(disk)
    assert index.write_indexes(Experiment(disk / "quiet-otter-1")) == []
    assert "quiet-otter-1" in (tmp_path / "experiments" / "index.html").read_text()
    assert not (tmp_path / "disk" / "index.html").exists()


def test_a_page_that_is_not_ours_is_left_alone(build):
    builder = build().results().jobs()
    home = builder.experiment.root.parent.parent / "index.html"
    write_text(home, "<html><body>my home page</body></html>")
    (notice,) = index.write_indexes(builder.experiment)
    assert str(home) in notice
    assert "my home page" in home.read_text()
    assert "quiet-otter-1" in (builder.experiment.root.parent / "index.html").read_text()
