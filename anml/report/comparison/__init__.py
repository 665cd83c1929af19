"""Several experiments side by side: which of their evaluations are the same, and what each model makes of them."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from anml.config.binding import nearest
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.report import labels
from anml.report.comparison.figures import MOST_PANELS, draw_accuracies, draw_curve
from anml.report.comparison.model import ComparedModel, read_compared_models, with_choices, with_labels
from anml.report.comparison.tables import (
    Curve,
    Table,
    as_frame,
    by_classes_frame,
    comparison_curves,
    comparison_tables,
    gaps_frame,
    gaps_of,
    write_csv,
)
from anml.report.comparison.text import comparison_text, difference, effort, trained
from anml.report.index import COMPARISON
from anml.report.page import interval_note, templates
from anml.report.style import figure_style, save_png
from anml.report.text import accuracy, number_of_runs
from anml.report.write import PIXELS_PER_INCH

# Writes the comparison of several experiments: a page, figures, and tables as text and CSV.

# Lines under a name, beside its accuracies: with more, rows would be too tall to compare.
MOST_CHOICES = 5
_SHOWN_FIGURE = re.compile(r'<img src="(comparison-(?:accuracy|classes-)[^"/]*\.png)"')


@dataclass(frozen=True)
class Comparison:
    """What was written: the tables as text, and the page."""

    text: str
    page: Path


def write_comparison(
    experiments: Sequence[Experiment], output: Path, flavors: Sequence[str] = (), command: str = ""
) -> Comparison:
    """Write the comparison of experiments that have results into a folder, each at its last checkpoint.

    flavors: only these (default: all). command: what to type to write it again. Each file is replaced as a whole, the
    page last. Raises ConfigError where fewer than two experiments have results, and on a flavor that none has.
    """
    output = output.absolute()
    entries, empty = _read(experiments)
    entries = with_choices(_only(entries, flavors))
    tables, curves = comparison_tables(entries), comparison_curves(entries)
    text = comparison_text(entries, tables)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".comparison.") as name:
        folder = Path(name)
        figures = _draw(folder, entries, tables, curves)
        write_csv(folder / "comparison.csv", as_frame(entries, tables))
        write_csv(folder / "comparison-by-classes.csv", by_classes_frame(entries))
        write_csv(folder / "comparison-oracle-gaps.csv", gaps_frame(entries, tables))
        (folder / "comparison.txt").write_text(text + "\n", encoding="utf-8")
        page = _render(entries, tables, curves, figures, empty, output, command)
        (folder / COMPARISON).write_text(page, encoding="utf-8")
        _publish(folder, output)
    return Comparison(text, output / COMPARISON)


def _read(experiments: Sequence[Experiment]) -> tuple[list[ComparedModel], list[str]]:
    """Return the experiments with results, and the names of those without."""
    found = [(experiment, read_compared_models(experiment)) for experiment in experiments]
    entries = with_labels([entry for _, own in found for entry in own])
    empty = [f"{experiment.project}/{experiment.group}" for experiment, own in found if not own]
    if len(entries) < 2:
        have = f"only {entries[0].address} has results" if entries else "no experiment has results yet"
        without = f" (without: {', '.join(empty)})" if empty else ""
        message = f"{have}{without}; a comparison takes two or more. See: python -m anml status PROJECT/GROUP"
        raise ConfigError(message)
    return entries, empty


def _only(entries: Sequence[ComparedModel], flavors: Sequence[str]) -> list[ComparedModel]:
    """Return contenders with the flavors asked for, and those that are the same evaluation under another name."""
    if not flavors:
        return list(entries)
    known = list(dict.fromkeys(flavor for entry in entries for flavor in entry.flavors))
    unknown = [flavor for flavor in flavors if flavor not in known]
    if unknown:
        problems = [f"no flavor {name}{nearest(name, known)}; there are: {', '.join(known)}" for name in unknown]
        raise ConfigError(problems)
    columns = [column for table in comparison_tables(entries) for column in table.columns]
    cells = [
        cells for column in columns if not {c.point.flavor for c in column.cells.values()}.isdisjoint(flavors)
        for cells in column.cells.items()
    ]  # fmt: skip
    found = []
    for place, entry in enumerate(entries):
        chosen = {cell.point.flavor for other, cell in cells if other == place}
        found += [entry.with_flavors(chosen)] if chosen else []
    if len(found) < 2:
        message = f"only {found[0].address} has results of {', '.join(flavors)}; a comparison takes two or more"
        raise ConfigError(message)
    return found


def _draw(
    folder: Path, entries: Sequence[ComparedModel], tables: Sequence[Table], curves: Sequence[Curve]
) -> dict[str, int]:
    """Save the figures, that of accuracies first. Returns names and the widths to show them at."""
    titles = [entry.title for entry in entries]
    made = {}
    with figure_style():
        drawn = [("accuracy", draw_accuracies(titles, tables))]
        drawn += [(f"classes-{curve.name}", draw_curve(titles, curve)) for curve in curves]
        for name, figure in drawn:
            if figure is not None:
                file = _file_name(name, made)
                save_png(figure, folder / file)
                made[file] = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return made


def _file_name(name: str, taken: Mapping[str, int]) -> str:
    """Return a file name of letters, digits, `-`, `_` and `.` that is not taken."""
    stem = "comparison-" + re.sub(r"[^\w.]+", "-", name).strip("-")
    names = [f"{stem}.png", *(f"{stem}-{number}.png" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _render(
    entries: Sequence[ComparedModel], tables: Sequence[Table], curves: Sequence[Curve], figures: Mapping[str, int],
    empty: Sequence[str], output: Path, command: str,
) -> str:  # fmt: skip
    points = [point for table in tables for point in table.points]
    projects = {entry.experiment.root.parent for entry in entries}
    context: dict[str, Any] = {
        "index": output.name if projects == {output} else "",
        "entries": entries,
        "report_of": lambda entry: _address(entry.experiment, output),
        "sentence": lambda entry: labels.sentence(entry.config) if entry.config else "",
        "trained": trained,
        "most_choices": MOST_CHOICES,
        "tables": tables,
        "accuracy": accuracy,
        "effort": effort,
        "gaps_of": gaps_of,
        "difference": difference,
        "count": labels.count,
        "images": labels.images,
        "classes_of": labels.classes_of,
        "number_of_runs": number_of_runs,
        "interval_note": interval_note(points),
        "figures": list(figures.items())[:1],
        "curves": list(zip(curves, list(figures.items())[1:], strict=True)),
        "is_choice": len(tables) > MOST_PANELS,
        "empty": empty,
        "command": command,
    }
    return templates().get_template("comparison.html").render(context)


def _address(experiment: Experiment, output: Path) -> str:
    """Return the address of a report relative to the page, empty when there is none."""
    page = experiment.report / "index.html"
    return Path(os.path.relpath(page, output)).as_posix() if page.is_file() else ""


def _publish(folder: Path, output: Path) -> None:
    """Move new files into place, the page last; remove figures of the earlier page that have no successor."""
    page = output / COMPARISON
    earlier = set(_SHOWN_FIGURE.findall(page.read_text(encoding="utf-8"))) if page.is_file() else set()
    new = sorted(folder.iterdir(), key=lambda path: path.name == COMPARISON)
    for path in new:
        os.replace(path, output / path.name)
    for address in earlier - {quote(path.name) for path in new}:
        (output / unquote(address)).unlink(missing_ok=True)
