"""Several experiments side by side: a page, figures, and tables as text and CSV."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from anml.config.binding import nearest
from anml.errors import ConfigError
from anml.experiment import Experiment
from anml.report.comparison import tables as texts
from anml.report.comparison.figures import MOST_PANELS, draw_accuracies, draw_curve, model_looks
from anml.report.comparison.model import ComparedModel, read_compared_models, with_choices, with_labels
from anml.report.comparison.tables import Curve, Table, comparison_curves, comparison_tables
from anml.report.index import COMPARISON
from anml.report.measures import in_words
from anml.report.page import render, replacing
from anml.report.style import figure_style, save_png
from anml.report.tables import with_keys, write_csv
from anml.report.text import interval_note, number_of_runs

# Lines under a name, beside its accuracies: with more, rows would be too tall to compare.
MOST_CHOICES = 5


class Comparison(NamedTuple):
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
    models, empty = _read(experiments)
    models = with_choices(_with_flavors(models, flavors))
    tables, curves = comparison_tables(models), comparison_curves(models)
    text = texts.comparison_text(models, tables)
    with replacing(output, COMPARISON) as folder:
        figures = _draw(folder, models, tables, curves)
        frames = {
            "comparison": texts.as_frame(models, tables),
            "comparison-by-classes": texts.by_classes_frame(models),
            "comparison-oracle-gaps": texts.gaps_frame(models, tables),
            "comparison-measures": texts.measures_frame(models, tables),
        }
        choices = {model.label: model.choices for model in models}
        keys = dict.fromkeys(key for each in choices.values() for key in each)
        for name, frame in frames.items():
            values = [choices[label] for label in frame["experiment"]]
            write_csv(folder / f"{name}.csv", with_keys(frame, keys, values))
        (folder / "comparison.txt").write_text(text + "\n", encoding="utf-8")
        page = _render(models, tables, curves, figures, output, empty=empty, command=command)
        (folder / COMPARISON).write_text(page, encoding="utf-8")
    return Comparison(text, output / COMPARISON)


def _read(experiments: Sequence[Experiment]) -> tuple[list[ComparedModel], list[str]]:
    """Return the models of experiments with results, and the names of those without."""
    models: list[ComparedModel] = []
    empty = []
    for experiment in experiments:
        of_experiment = read_compared_models(experiment)
        models += of_experiment
        empty += [] if of_experiment else [f"{experiment.project}/{experiment.group}"]
    if len(models) < 2:
        have = f"only {models[0].address} has results" if models else "no experiment has results yet"
        without = f" (without: {', '.join(empty)})" if empty else ""
        message = f"{have}{without}; a comparison takes two or more. See: python -m anml status PROJECT/GROUP"
        raise ConfigError(message)
    return with_labels(models), empty


def _with_flavors(models: Sequence[ComparedModel], flavors: Sequence[str]) -> list[ComparedModel]:
    """Return models with the flavors asked for, and with those that are the same evaluation under another name."""
    if not flavors:
        return list(models)
    names = list(dict.fromkeys(cell.best.flavor for model in models for cell in model.cells))
    if unknown := [flavor for flavor in flavors if flavor not in names]:
        problems = [f"no flavor {name}{nearest(name, names)}; there are: {', '.join(names)}" for name in unknown]
        raise ConfigError(problems)
    chosen: list[set[str]] = [set() for _ in models]
    for column in [column for table in comparison_tables(models) for column in table.columns]:
        in_column = {index: cell.best.flavor for index, cell in column.cells.items()}
        for index, name in in_column.items():
            if not set(flavors).isdisjoint(in_column.values()):
                chosen[index].add(name)
    kept = [model.with_flavors(own) for model, own in zip(models, chosen, strict=True) if own]
    if len(kept) < 2:
        message = f"only {kept[0].address} has results of {', '.join(flavors)}; a comparison takes two or more"
        raise ConfigError(message)
    return kept


def _draw(
    folder: Path, models: Sequence[ComparedModel], tables: Sequence[Table], curves: Sequence[Curve]
) -> dict[str, int]:
    """Save the figures, that of accuracies first. Returns names and the widths to show them at."""
    looks = model_looks(models)
    widths: dict[str, int] = {}
    with figure_style():
        figures = [("accuracy", draw_accuracies(looks, tables))]
        figures += [(f"classes-{curve.name}", draw_curve(looks, curve)) for curve in curves]
        for name, figure in figures:
            file = _file_name(name, widths)
            widths[file] = save_png(figure, folder / file)
    return widths


def _file_name(name: str, taken: Mapping[str, int]) -> str:
    stem = "comparison-" + re.sub(r"[^\w.]+", "-", name).strip("-")
    names = [f"{stem}.png", *(f"{stem}-{number}.png" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _render(
    models: Sequence[ComparedModel], tables: Sequence[Table], curves: Sequence[Curve], figures: Mapping[str, int],
    output: Path, **context: object,
) -> str:  # fmt: skip
    files = list(figures.items())
    return render(
        "comparison.html",
        project=output.name if {model.experiment.root.parent for model in models} == {output} else "",
        models=models,
        report_of=lambda model: _report_address(model.experiment, output),
        tables=tables,
        texts=texts,
        number_of_runs=number_of_runs,
        in_words=in_words,
        interval_note=interval_note([result for table in tables for result in table.results]),
        figures=files[:1],
        curves=list(zip(curves, files[1:], strict=True)),
        is_choice=len(tables) > MOST_PANELS,
        most_choices=MOST_CHOICES,
        **context,
    )


def _report_address(experiment: Experiment, output: Path) -> str:
    """Return the address of a report relative to the page, empty when there is none."""
    page = experiment.report / "index.html"
    return Path(os.path.relpath(page, output)).as_posix() if page.is_file() else ""
