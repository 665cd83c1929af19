"""Results files: columns that others rely on, values that come back to the bit."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from anml.errors import DataError
from anml.results import (
    COLUMNS,
    ClassRow,
    FinishedTrajectories,
    ResultRow,
    TrajectoryResult,
    read_results,
    write_results,
)

ROW = ResultRow(
    flavor="olft", protocol="sequential", model="ANML, small", dataset="omniglot", checkpoint_step=400, classes=10,
    train_examples=15, test_examples=5, lr=5.5e-06, train_seed=1, run=0, epoch=1, step=30, classes_trained=2,
    train_acc=0.1 + 0.2, test_acc=1 / 3, train_top5=1.0, test_top5=0.0,
)  # fmt: skip
ZERO_SHOT = dataclasses.replace(ROW, flavor="no-sgd", protocol="zero_shot", lr=None, epoch=0, step=0)
CLASS_ROW = ClassRow(10, 15, 5, 5.5e-06, 0, 30, 2, 1, 2 / 3, 0.2)


def test_columns_are_those_that_the_design_names():
    assert ",".join(COLUMNS) == (
        "flavor,protocol,model,dataset,checkpoint_step,classes,train_examples,test_examples,lr,train_seed,"
        "run,epoch,step,classes_trained,train_acc,test_acc,train_top5,test_top5,kept_bytes,seconds,first_runs,code"
    )


def test_rows_come_back_to_the_bit(tmp_path):
    write_results(tmp_path / "results" / "a.csv", [ROW, ZERO_SHOT], [])
    assert read_results([tmp_path / "results" / "a.csv"]) == [ROW, ZERO_SHOT]


def test_the_first_line_names_the_columns_and_what_does_not_apply_is_empty(tmp_path):
    write_results(tmp_path / "a.csv", [ZERO_SHOT], [])
    values = 'no-sgd,zero_shot,"ANML, small",omniglot,400,10,15,5,,1,0,0,0,2,0.30000000000000004,'
    values += "0.3333333333333333,1.0,0.0,,,,"
    assert (tmp_path / "a.csv").read_text() == f"{','.join(COLUMNS)}\n{values}\n"


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_results(tmp_path / f"{name}.csv", [ROW, ZERO_SHOT], [CLASS_ROW] * 3)
    for kind in ("csv", "parquet"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_parts_are_merged_in_the_order_given(tmp_path):
    write_results(tmp_path / "1.csv", [ROW], [])
    write_results(tmp_path / "2.csv", [ZERO_SHOT], [])
    assert read_results([tmp_path / "2.csv", tmp_path / "1.csv"]) == [ZERO_SHOT, ROW]


@pytest.mark.parametrize("rows", [[CLASS_ROW, CLASS_ROW._replace(position=2)], [CLASS_ROW._replace(lr=None)], []])
def test_values_per_class_lie_beside_it_as_parquet(tmp_path, rows):
    write_results(tmp_path / "olft-step-000400.csv", [ROW], rows)
    table = pq.read_table(tmp_path / "olft-step-000400.parquet")
    assert table.column_names == list(ClassRow._fields)
    assert [str(kind) for kind in table.schema.types] == [
        "int64", "int64", "int64", "double", "int64", "int64", "int64", "int64", "double", "double",
    ]  # fmt: skip
    assert [ClassRow(**row) for row in table.to_pylist()] == rows


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("run,accuracy\n1,0.5\n")
    with pytest.raises(DataError, match="not a results file of this program: its columns are run, accuracy"):
        read_results([tmp_path / "a.csv"])


def test_a_column_of_a_later_version_is_ignored_and_one_of_an_earlier_version_has_its_default(tmp_path):
    write_results(tmp_path / "a.csv", [ROW, ZERO_SHOT], [])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["test_top5"]
    with (tmp_path / "b.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["seconds", *reversed(rows[0])])
        writer.writeheader()
        writer.writerows(row | {"seconds": "1.5"} for row in rows)
    found = read_results([tmp_path / "b.csv"])
    assert [math.isnan(row.test_top5) for row in found] == [True, True]
    assert [dataclasses.replace(row, test_top5=0.0) for row in found] == [ROW, ZERO_SHOT]


@pytest.mark.parametrize("damage", [lambda text: text[:-30], lambda text: text.replace("400", "many")])
def test_a_damaged_line_is_named(tmp_path, damage):
    write_results(tmp_path / "a.csv", [ROW, ROW], [])
    (tmp_path / "a.csv").write_text(damage((tmp_path / "a.csv").read_text()))
    with pytest.raises(DataError, match=r"a\.csv: line [23] is damaged"):
        read_results([tmp_path / "a.csv"])


def trajectory(run: int) -> TrajectoryResult:
    return TrajectoryResult([dataclasses.replace(ROW, run=run)], [CLASS_ROW._replace(run=run)])


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "results" / "olft.partial.jsonl"


def test_finished_trajectories_are_found_again(partial):
    finished = FinishedTrajectories(partial)
    for index in (4, 0, 2):
        finished.add(index, trajectory(index))
    assert (
        FinishedTrajectories(partial).results == finished.results == {index: trajectory(index) for index in (4, 0, 2)}
    )


def test_confusions_of_finished_trajectories_are_found_again(partial):
    result = trajectory(0)._replace(confusions=[[3, 15, 5, 0.01, 0, 0, 1, 4], [3, 15, 5, None, 0, 1, -1, 2]])
    FinishedTrajectories(partial).add(0, result)
    assert FinishedTrajectories(partial).results == {0: result}


def test_a_line_that_was_cut_off_is_done_again(partial):
    for index in (0, 1):
        FinishedTrajectories(partial).add(index, trajectory(index))
    partial.write_bytes(partial.read_bytes()[:-20])
    finished = FinishedTrajectories(partial)
    assert list(finished.results) == [0]
    finished.add(1, trajectory(1))
    assert FinishedTrajectories(partial).results == {0: trajectory(0), 1: trajectory(1)}


def test_finished_trajectories_of_earlier_versions_are_found_again(partial):
    partial.parent.mkdir()
    lines = [[i, [dataclasses.astuple(r)[:18] for r in trajectory(i).rows], trajectory(i).class_rows] for i in (0, 1)]
    partial.write_text("\n".join(map(json.dumps, lines)))
    finished = FinishedTrajectories(partial)
    assert finished.results == {0: trajectory(0), 1: trajectory(1)}
    finished.add(2, trajectory(2))
    assert FinishedTrajectories(partial).results == {index: trajectory(index) for index in range(3)}


def test_finished_trajectories_of_a_later_version_lose_only_its_new_columns(partial):
    FinishedTrajectories(partial).add(0, trajectory(0))
    index, rows, class_rows, columns, class_columns = json.loads(partial.read_text())
    newer = [[[1.5, *row] for row in part] for part in (rows, class_rows)]
    line = [index, *newer, ["seconds", *columns], ["seconds", *class_columns]]
    partial.write_text(json.dumps(line))
    assert FinishedTrajectories(partial).results == {0: trajectory(0)}


def test_an_interrupted_evaluation_ends_in_the_same_bytes(tmp_path, partial):
    undisturbed = FinishedTrajectories(tmp_path / "undisturbed.jsonl")
    for index in range(3):
        undisturbed.add(index, trajectory(index))
        FinishedTrajectories(partial).add(index, trajectory(index))
    rows = undisturbed.write(tmp_path / "a.csv")
    assert (
        rows
        == FinishedTrajectories(partial).write(tmp_path / "b.csv")
        == [trajectory(index).rows[0] for index in range(3)]
    )
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_results_come_in_order_of_trajectories_whatever_the_order_of_work(tmp_path, partial):
    finished = FinishedTrajectories(partial)
    for index in (2, 0, 1):
        finished.add(index, trajectory(index))
    assert [row.run for row in finished.write(tmp_path / "a.csv")] == [0, 1, 2]


def test_the_partial_file_goes_when_the_results_are_there(tmp_path, partial):
    FinishedTrajectories(partial).add(0, trajectory(0))
    FinishedTrajectories(partial).write(tmp_path / "a.csv")
    assert not partial.exists()
