"""The comparison as tables: one per amount of classes and examples, models down, evaluations across; CSV and text."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from anml.report.comparison.differences import Alignment, Evaluation, align
from anml.report.comparison.model import Cell, ComparedModel
from anml.report.labels import checkpoint, classes_of, count, images, listed, unit
from anml.report.measures import Runs
from anml.report.statistics import Estimate, estimate, grouped
from anml.report.tables import BY_CLASSES_COLUMNS, SUMMARY_COLUMNS, Amount, RateResult
from anml.report.text import HEADING, accuracy_at_rate, aligned, number_of_runs, table_lines

GAP_HEADING = "What learning in sequence costs: shuffled minus sequential, run by run, mean ± 95% interval"
CHOICE_HEADING = "What the trainings differ in"


@dataclass(frozen=True)
class Column:
    """One evaluation; cells by the index of the model."""

    name: str
    evaluation: Evaluation
    cells: dict[int, Cell]

    @property
    def effort_differs(self) -> bool:
        """Whether models had different numbers of runs, of seeds, or of rates to choose from."""
        return len({(cell.best.runs, cell.best.seeds, len(cell.rates)) for cell in self.cells.values()}) > 1


@dataclass(frozen=True)
class Table:
    """All columns of one amount, an oracle right behind its sequential evaluation."""

    amount: Amount
    columns: tuple[Column, ...]
    notes: tuple[str, ...]

    @property
    def results(self) -> list[RateResult]:
        return [cell.best for column in self.columns for cell in column.cells.values()]

    @property
    def models(self) -> list[int]:
        """Indexes of the models that have results here."""
        return sorted({index for column in self.columns for index in column.cells})

    @property
    def pairs(self) -> list[list[Column]]:
        """Columns in groups: a sequential evaluation with its oracle, every other one alone."""
        return list(grouped(self.columns, lambda column: column.evaluation.pair).values())


@dataclass(frozen=True)
class Curve:
    """One sequential evaluation: accuracy against classes learned, by the index of the model."""

    name: str
    lines: dict[int, list[RateResult]]


@dataclass(frozen=True)
class Gap:
    """Accuracy of an oracle minus that of its sequential flavor, by the index of the model.

    The mean over the runs that both have, of one evaluation seed: a run has the same classes and examples in both, so
    that the interval of the differences is narrower than those of the accuracies.
    """

    sequential: str
    oracle: str
    differences: dict[int, Estimate]

    @property
    def name(self) -> str:
        return f"{self.oracle} - {self.sequential}"


@dataclass(frozen=True)
class MeasureRow:
    """One number of an evaluation, by the index of the model, and by how much it differs from the first model's.

    Differences are of the runs that both have, of one evaluation seed: these have the same classes and examples.
    The values of `cka` are with the first model, which has none itself.
    """

    evaluation: str
    name: str
    values: dict[int, Estimate]
    differences: dict[int, Estimate]


def measures_of(table: Table) -> list[MeasureRow]:
    """Return the accuracy of every evaluation, and what there is besides."""
    rows = []
    for column in table.columns:
        measures = {index: {"accuracy": cell.runs, **cell.measures} for index, cell in sorted(column.cells.items())}
        for name in dict.fromkeys(name for runs in measures.values() for name in runs):
            runs = {index: of_model[name] for index, of_model in measures.items() if name in of_model}
            first = next(iter(runs))
            values = {index: estimate(_by_seed(of_model)) for index, of_model in runs.items()}
            others = [i for i in runs if i != first and column.cells[i].seed == column.cells[first].seed]
            pairs = {i: {k: v - runs[first][k] for k, v in runs[i].items() if k in runs[first]} for i in others}
            differences = {index: estimate(_by_seed(pair)) for index, pair in pairs.items() if pair}
            rows.append(MeasureRow(column.name, name, values, differences))
        if alike := _cka(column):
            rows.append(MeasureRow(column.name, "cka", alike, {}))
    return rows


def _cka(column: Column) -> dict[int, Estimate]:
    """Return the CKA of each model with the first one that has it measured, mean over the trainings of both.

    Of run 0, and of one evaluation seed alone, which gives both the same images.
    """
    cells = {index: cell for index, cell in sorted(column.cells.items()) if cell.similarities}
    first = next(iter(cells.values()), None)
    return {
        index: estimate([(0, fmean(float(a @ b) for a in first.similarities for b in cell.similarities))])
        for index, cell in cells.items()
        if first and cell is not first and cell.seed == first.seed
    }


def _by_seed(runs: Runs) -> list[tuple[int, float]]:
    return [(seed, value) for (seed, _), value in runs.items()]


def measures_frame(models: Sequence[ComparedModel], tables: Sequence[Table]) -> pd.DataFrame:
    """Return a line per number and model."""
    lines = []
    for amount, row in [(table.amount, row) for table in tables for row in measures_of(table)]:
        for index, value in row.values.items():
            line = {"evaluation": row.evaluation, "measure": row.name, "value": value.mean, "ci95": value.half_width}
            if difference := row.differences.get(index):
                line |= {"difference": difference.mean, "difference_ci95": difference.half_width}
            lines.append({**_model_values(models[index]), **amount._asdict(), **line})
    return pd.DataFrame(lines)


def comparison_tables(models: Sequence[ComparedModel]) -> list[Table]:
    """Return a table per amount, most classes first."""
    amounts = {cell.best.amount for model in models for cell in model.cells}
    tables = []
    for amount in sorted(amounts, key=lambda amount: (-amount.classes, *amount)):
        cells = [{cell.best.flavor: cell for cell in m.cells if cell.best.amount == amount} for m in models]
        matches = _align(models, [{flavor: cell.best for flavor, cell in own.items()} for own in cells])
        columns = [Column(match.label, match.evaluation, match.pick(cells)) for match in matches]
        tables.append(Table(amount, tuple(columns), tuple(table_notes(models, matches))))
    return tables


def comparison_curves(models: Sequence[ComparedModel]) -> list[Curve]:
    """Return a curve per sequential evaluation that two models have, and one of them scored on its way."""
    by_classes = [grouped(model.by_classes, lambda result: result.amount._replace(classes=0)) for model in models]
    curves = []
    for amount in sorted({amount for amounts in by_classes for amount in amounts}):
        lines = [grouped(amounts.get(amount, []), lambda result: result.flavor) for amounts in by_classes]
        for match in _align(models, [{flavor: line[0] for flavor, line in own.items()} for own in lines]):
            of_curve = match.pick(lines)
            has_curve = len(of_curve) > 1 and max(map(len, of_curve.values())) > 1
            if has_curve and match.evaluation.protocol.in_sequence:
                curves.append(Curve(match.label, of_curve))
    return curves


def _align(models: Sequence[ComparedModel], flavors: Sequence[Mapping[str, RateResult]]) -> list[Alignment]:
    """Return which flavors of models, each given with one of its results, are the same evaluation."""
    pairs = zip(models, flavors, strict=True)
    return align([{name: model.evaluation(result) for name, result in own.items()} for model, own in pairs])


def gaps_of(table: Table) -> list[Gap]:
    """Return the gap of every sequential flavor to every oracle of it."""
    gaps = []
    for columns in table.pairs:
        oracles = [column for column in columns if column.evaluation.is_oracle]
        for sequential in [column for column in columns if column not in oracles]:
            gaps += [Gap(sequential.name, oracle.name, _differences(sequential, oracle)) for oracle in oracles]
    return [gap for gap in gaps if gap.differences]


def _differences(sequential: Column, oracle: Column) -> dict[int, Estimate]:
    differences = {}
    for index in sorted(sequential.cells.keys() & oracle.cells.keys()):
        low, high = sequential.cells[index], oracle.cells[index]
        both = sorted(low.runs.keys() & high.runs.keys())
        if both and low.seed == high.seed:
            differences[index] = estimate((seed, high.runs[seed, run] - low.runs[seed, run]) for seed, run in both)
    return differences


# The columns that say whose a line of a CSV file is.
MODEL_COLUMNS: dict[str, Callable[[ComparedModel], object]] = {
    "experiment": lambda model: model.label,
    "project": lambda model: model.experiment.project,
    "group": lambda model: model.experiment.group,
    "pixels": lambda model: model.config.image_shape[1] if model.config else None,
    "differs_in": lambda model: ", ".join(model.differs_in),
    "is_incomplete": lambda model: bool(model.missing),
}


RATES_COLUMNS = ("rates_tried", "lowest_rate", "highest_rate")
# Fields of an estimate, and what the CSV file calls them.
ESTIMATE_COLUMNS = {
    "mean": "difference", "std": "std", "half_width": "ci95", "over": "interval_over", "runs": "runs", "seeds": "seeds",
}  # fmt: skip


def _model_values(model: ComparedModel) -> dict[str, object]:
    return {name: read(model) for name, read in MODEL_COLUMNS.items()}


def as_frame(models: Sequence[ComparedModel], tables: Sequence[Table]) -> pd.DataFrame:
    """Return a line per cell: whose it is, the columns of summary.csv, and the rates tried."""
    lines = []
    for column in [column for table in tables for column in table.columns]:
        for index, cell in column.cells.items():
            rates = (len(cell.rates), min(cell.rates, default=None), max(cell.rates, default=None))
            line = {**_model_values(models[index]), "evaluation": column.name, **vars(cell.best)}
            lines.append(line | dict(zip(RATES_COLUMNS, rates, strict=True)))
    frame = pd.DataFrame(lines, columns=[*MODEL_COLUMNS, "evaluation", *SUMMARY_COLUMNS, *RATES_COLUMNS])
    return frame.astype(dict.fromkeys(("lr", *RATES_COLUMNS[1:]), float))


def by_classes_frame(models: Sequence[ComparedModel]) -> pd.DataFrame:
    """Return a line per model, flavor and number of classes scored, with the columns of by-classes.csv."""
    lines = [{**_model_values(model), **vars(result)} for model in models for result in model.by_classes]
    return pd.DataFrame(lines, columns=[*MODEL_COLUMNS, *BY_CLASSES_COLUMNS]).astype({"lr": float})


def gaps_frame(models: Sequence[ComparedModel], tables: Sequence[Table]) -> pd.DataFrame:
    lines = []
    for amount, gap in [(table.amount, gap) for table in tables for gap in gaps_of(table)]:
        for index, value in gap.differences.items():
            model = {**_model_values(models[index]), "model": models[index].model}
            pair = {"sequential": gap.sequential, "oracle": gap.oracle}
            lines.append({**model, **amount._asdict(), **pair, **vars(value)})
    names = [*MODEL_COLUMNS, "model", *Amount._fields, "sequential", "oracle", *ESTIMATE_COLUMNS]
    return pd.DataFrame(lines, columns=names).rename(columns=ESTIMATE_COLUMNS)


def table_notes(models: Sequence[ComparedModel], matches: Sequence[Alignment]) -> Iterator[str]:
    """Yield sentences on differences that a table allows for: its cells are not equal in everything."""
    shown = [models[index] for index in sorted({index for match in matches for index in match.flavors})]
    configs = {model.label: model.config for model in shown if model.config}
    if sizes := _by_value({label: "{0}x{0} pixels".format(c.image_shape[1]) for label, c in configs.items()}):
        yield f"Images differ in size: {sizes}."
    if outputs := _by_value({label: f"{config.model_record.num_classes:,}" for label, config in configs.items()}):
        yield f"Outputs differ in number: {outputs}."
    for index, model in enumerate(models):
        others = [match for match in matches if match.flavors.get(index, match.name) != match.name]
        if others:
            yield f"{model.label} calls {', '.join(f'{match.label} {match.flavors[index]}' for match in others)}."
    for match in matches:
        flavors = [(models[index], flavor) for index, flavor in match.flavors.items()]
        evaluated = [(model.label, model.config.eval.get(flavor)) for model, flavor in flavors if model.config]
        if seeds := _by_value({label: evaluation.seed for label, evaluation in evaluated if evaluation}):
            yield f"{match.label}: seeds differ, so runs are not of the same classes and examples: {seeds}."
    if unreadable := [model.label for model in shown if model.config is None]:
        yield f"What the flavors of {listed(unreadable)} do is unknown, so they have columns of their own."


def _by_value(values: Mapping[str, Hashable]) -> str:
    """Return `ANML and SANML 28, OML 84`, empty where all values are equal."""
    labels = grouped(values, lambda label: values[label])
    return ", ".join(f"{listed(names)} {value}" for value, names in labels.items()) if len(labels) > 1 else ""


def comparison_text(models: Sequence[ComparedModel], tables: Sequence[Table]) -> str:
    columns = [
        ["experiment", *(model.title for model in models)],
        ["folder", *(model.address for model in models)],
        ["checkpoint", *(trained(model) for model in models)],
        ["state", *(model.state for model in models)],
    ]
    lines = [HEADING, "", *aligned(columns)]
    missing = [f"{model.label}: {sentence}" for model in models for sentence in model.missing]
    lines += ["", "Incomplete:", *missing] if missing else []
    keys = dict.fromkeys(key for model in models for key in model.choices)
    if keys:
        choices = [[key, *(model.choices.get(key, "-") for model in models)] for key in keys]
        lines += ["", CHOICE_HEADING, *table_lines(columns[0], choices)]
    return "\n".join([*lines, *(line for table in tables for line in ["", *_table_text(models, table)])])


def trained(model: ComparedModel) -> str:
    """Return which checkpoint is compared, of how many trainings."""
    seeds = max((cell.best.seeds for cell in model.cells), default=1)
    return checkpoint(model.step, unit(model.config)) + (f", {count(seeds, 'seeds')}" if seeds > 1 else "")


def _table_text(models: Sequence[ComparedModel], table: Table) -> list[str]:
    noun, amount = images(table.amount.dataset), table.amount
    what = f"{amount.classes} {classes_of(amount.dataset)}, {count(amount.train_examples, noun)} of each to learn"
    caption = f"{what}, {amount.test_examples} to test; {number_of_runs(table.results)}"
    names = ["experiment", *(models[index].title for index in table.models)]
    columns = []
    for column in table.columns:
        cells = [_cell_text(column, index) for index in table.models]
        columns.append([column.name, *cells, f"{1 / amount.classes:.4f}"])
    lines = [caption, *table_lines([*names, "chance"], columns)]
    gaps = []
    for gap in gaps_of(table):
        values = [gap.differences.get(index) for index in table.models]
        gaps.append([gap.name, *("-" if value is None else difference(value) for value in values)])
    lines += ["", GAP_HEADING, *table_lines(names, gaps)] if gaps else []
    return [*lines, *(f"note: {note}" for note in table.notes)]


def _cell_text(column: Column, index: int) -> str:
    if index not in column.cells:
        return "-"
    cell = column.cells[index]
    return accuracy_at_rate(cell.best) + (f" ({effort(cell)})" if column.effort_differs else "")


def difference(value: Estimate) -> str:
    """Return mean and 95% interval of a difference, as `+0.076 ± 0.005`."""
    return f"{value.mean:+.3f}" + ("" if math.isnan(value.half_width) else f" ± {value.half_width:.3f}")


def effort(cell: Cell) -> str:
    """Return the number of runs, and of the rates that the best was chosen from."""
    runs = number_of_runs([cell.best])
    return f"{runs}, {count(len(cell.rates), 'rates')}" if cell.rates else runs
