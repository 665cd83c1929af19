"""The rows of `results/*.csv`: their columns, writing, reading, merging the parts of an array job."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, astuple, dataclass, field, fields
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from anml.atomic import sync, write_text
from anml.errors import DataError


@dataclass(frozen=True)
class ResultRow:
    """One scoring of one run. Accuracies are fractions, means over the classes learned so far; None: does not apply.

    kept_bytes: what the learner keeps from one example to the next. seconds: of learning and scoring so far, not of
    encoding; of trajectories that learn side by side, an equal share. They never tell results apart: no two times are
    the same. first_runs: where the spread over the first runs decided how many follow, how many these are. code: the
    checksum of the code that measured (plugins.py). A new column comes last and has a default, which stands for it in
    files of earlier versions.
    """

    flavor: str
    protocol: str
    model: str
    dataset: str
    checkpoint_step: int
    classes: int
    train_examples: int
    test_examples: int
    lr: float | None
    train_seed: int
    run: int
    epoch: int
    step: int
    classes_trained: int
    train_acc: float
    test_acc: float
    train_top5: float = nan
    test_top5: float = nan
    kept_bytes: int | None = None
    seconds: float | None = field(default=None, compare=False)
    first_runs: int | None = None
    code: str = ""


# Beside a results file: the rates that a race did not continue, and why.
STOPPED = ".stopped.json"
# Beside a results file: how many of its trajectories were taken from which others (evaluate/reuse.py).
REUSED = ".reused.json"
# Beside a results file: what `measure` names (evaluate/measure.py).
REPRESENTATION, CONFUSIONS, PICTURES = (f".{name}.parquet" for name in ("representation", "confusions", "pictures"))
COLUMNS = tuple(column.name for column in fields(ResultRow))
_REQUIRED = {column.name for column in fields(ResultRow) if column.default is MISSING}
_KINDS: dict[str, Any] = {column.name: column.type for column in fields(ResultRow)} | {
    "lr": float,
    "kept_bytes": int,
    "first_runs": int,
    "seconds": float,
}
# As pandas calls them.
COLUMN_TYPES = {name: {str: "str", int: "int64", float: "float64"}[kind] for name, kind in _KINDS.items()}
COLUMN_TYPES |= {"kept_bytes": "Int64", "first_runs": "Int64"}


class ClassRow(NamedTuple):
    """Accuracy of one class at one scoring; `position` is its place in the order of learning, from 0.

    A sweep has about a million of them, as plain tuples: they are made in a fifth of the time, and the garbage
    collector soon passes over them. New columns as in ResultRow.
    """

    classes: int
    train_examples: int
    test_examples: int
    lr: float | None
    run: int
    step: int
    classes_trained: int
    position: int
    train_acc: float
    test_acc: float


class ConfusionRow(NamedTuple):
    """How many test examples of the class at `position` were taken for the one at `predicted` when all were learned.

    predicted: -1 where the model answered with none of the run's classes.
    """

    classes: int
    train_examples: int
    test_examples: int
    lr: float | None
    run: int
    position: int
    predicted: int
    answers: int


class TrajectoryResult(NamedTuple):
    """All rows of one trajectory. class_rows, confusions: of the values of a ClassRow and of a ConfusionRow."""

    rows: list[ResultRow]
    class_rows: Sequence[tuple]
    confusions: Sequence[Sequence[Any]] = ()


class FinishedTrajectories:
    """The trajectories that an evaluation has finished so far, on disk: a job that is stopped continues after them.

    A line for each: [index, rows, class_rows, columns, columns of class_rows, confusions if measured].
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[int, TrajectoryResult] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                index, rows, class_rows, *more = json.loads(line)
            except ValueError:
                continue  # The line that was being written when the job was killed.
            # Earlier versions did not name the columns; these are theirs.
            names, class_names, *confusions = more or (COLUMNS[:18], ClassRow._fields[:10])
            self.results[index] = TrajectoryResult(
                [ResultRow(**_by_name(names, row, COLUMNS)) for row in rows],
                [ClassRow(**_by_name(class_names, row, ClassRow._fields)) for row in class_rows],
                *confusions,
            )

    def add(self, index: int, result: TrajectoryResult) -> None:
        """Keep the result of the trajectory with this index."""
        self.results[index] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [astuple(row) for row in result.rows]
        more = [result.confusions] if result.confusions else []
        line = json.dumps([index, rows, result.class_rows, COLUMNS, ClassRow._fields, *more])
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}" if file.tell() else line)

    def write(self, path: Path) -> list[ResultRow]:
        """Write the results file, in order of trajectories, and remove the partial one. Returns the rows."""
        ordered = [self.results[index] for index in sorted(self.results)]
        rows = [row for result in ordered for row in result.rows]
        write_results(path, rows, [row for result in ordered for row in result.class_rows])
        self.path.unlink(missing_ok=True)
        return rows


def _by_name(names: Sequence[str], row: Sequence[Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return a row's values by column, without those of later versions. Raises ValueError for another length."""
    return {name: value for name, value in zip(names, row, strict=True) if name in columns}


def write_results(
    path: Path, rows: Sequence[ResultRow], class_rows: Sequence[tuple], origins: Sequence[tuple] = ()
) -> None:
    """Write results as CSV, and the per-class values beside it as Parquet.

    origins: for several models or data sets, the model, checkpoint step, seed and data set of each class row.
    """
    import pyarrow as pa  # Only evaluation jobs write: status and the like stay quick.

    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = [(name, pa.int64() if kind is int else pa.float64()) for name, kind in ClassRow.__annotations__.items()]
    table = pa.table(list(zip(*class_rows, strict=True)) or [()] * len(kinds), schema=pa.schema(kinds))
    names = ("model", "checkpoint_step", "train_seed", "dataset")
    for name, values in zip(names, zip(*origins, strict=True), strict=False):
        table = table.append_column(name, pa.array(values))
    _write_parquet(table, path.with_suffix(".parquet"))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if value is None else value for value in astuple(row)] for row in rows)
    write_text(path, text.getvalue())


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as Parquet."""
    import pyarrow as pa

    _write_parquet(pa.Table.from_pylist(list(rows)), path)


def _write_parquet(table: Any, path: Path) -> None:
    """Write a table under a temporary name first: a job that is killed leaves no half of it."""
    import pyarrow.parquet as pq

    temporary = path.with_name(f".{path.name}")
    pq.write_table(table, temporary)
    sync(temporary)
    temporary.replace(path)


def read_results(paths: Iterable[Path]) -> list[ResultRow]:
    """Read result files, in the order given. Raises DataError on files that are damaged or are no results."""
    return [row for path in paths for row in _read_file(path)]


def _read_file(path: Path) -> list[ResultRow]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if not _REQUIRED.issubset(header):
            message = f"{path}: not a results file of this program: its columns are {', '.join(header)}"
            raise DataError(message)
        try:
            return [_parse(_by_name(header, values, COLUMNS)) for values in reader]
        except ValueError as error:
            message = f"{path}: line {reader.line_num} is damaged ({error}). Run the evaluation again."
            raise DataError(message) from error


def _parse(texts: Mapping[str, str]) -> ResultRow:
    values: dict[str, Any] = {
        name: _KINDS[name](text) if text or _KINDS[name] is str else None for name, text in texts.items()
    }
    return ResultRow(**values)
