"""The files of a comparison, its page and the links to it."""

import os
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from anml.report.comparison import write_comparison
from anml.report.index import write_indexes
from tests.report.conftest import compare, report

OWN_FILES = {
    "comparison.html",
    "comparison.csv",
    "comparison-by-classes.csv",
    "comparison-measures.csv",
    "comparison-oracle-gaps.csv",
    "comparison.txt",
}
FIGURES = {"comparison-accuracy.png", "comparison-classes-olft.png"}
# Elements that are not closed.
VOID = {"meta", "img", "br"}


class Tags(HTMLParser):
    """Collects links and images, and fails on an element that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.open += [] if tag in VOID else [tag]
        self.addresses += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_all_files_are_written(make):
    one, two = make("ANML").results().jobs(), make("SANML").results().jobs()
    comparison = compare(one, two)
    folder = one.experiment.root.parent
    assert comparison.page == folder / "comparison.html"
    assert {path.name for path in folder.iterdir() if path.is_file()} == OWN_FILES | FIGURES
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert (folder / "comparison.txt").read_text(encoding="utf-8") == comparison.text + "\n"


def test_written_twice_it_is_the_same_to_the_byte(make):
    builders = [make("ANML").results().jobs(), make("SANML").results().jobs()]

    def files() -> dict[str, bytes]:
        folder = compare(*builders).page.parent
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    assert files() == files()


def test_the_page_is_well_formed_and_its_links_lead_somewhere(make, tmp_path):
    builders = [make("ANML").results().jobs(), make("SANML").results().jobs()]
    for builder in builders:
        report(builder)
    inside = compare(*builders).page
    write_indexes(builders[0].experiment)
    outside = write_comparison([builder.experiment for builder in builders], tmp_path / "elsewhere").page
    for page in (inside, outside):
        tags = Tags()
        tags.feed(page.read_text(encoding="utf-8"))
        assert tags.open == []
        assert len(tags.addresses) >= 6
        assert [address for address in tags.addresses if not (page.parent / unquote(address)).is_file()] == []
        assert "http" not in page.read_text()


@pytest.mark.usefixtures("no_figures")
def test_names_are_escaped(make):
    builders = [make(group, project="a&b").results() for group in ('<img src=x onerror="1">', "plain")]
    assert "<img src=x" not in compare(*builders).page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_figures")
def test_the_index_links_to_the_comparison_and_says_when_it_is_old(make):
    builders = [make(group, project="it's").results().jobs() for group in ("ANML", "SANML")]
    for builder in builders:
        report(builder)
    index = builders[0].experiment.root.parent / "index.html"
    above = index.parent.parent / "index.html"
    assert "comparison.html" not in index.read_text()
    assert "python -m anml compare &#39;it&#39;" in index.read_text()
    page = compare(*builders).page
    write_indexes(builders[0].experiment)
    assert 'href="comparison.html"' in index.read_text()
    assert 'href="it%27s/comparison.html"' in above.read_text()
    assert "older than the newest report" not in index.read_text()
    os.utime(page, (1e9, 1e9))
    write_indexes(builders[0].experiment)
    assert "older than the newest report" in index.read_text()


@pytest.mark.usefixtures("no_figures")
def test_one_experiment_is_nothing_to_compare_in_an_index(make):
    builder = make("ANML").results().jobs()
    report(builder)
    assert "anml compare" not in (builder.experiment.root.parent / "index.html").read_text()
