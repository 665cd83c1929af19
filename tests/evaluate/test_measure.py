"""What is measured besides accuracy, on cases that can be worked out by hand."""

import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from anml.checkpoints import ModelCard
from anml.config.checks import check_eval
from anml.evaluate.measure import activity, similarities, write_measures
from anml.evaluate.prepared_run import Shape
from anml.evaluate.protocols import answers
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from anml.results import CONFUSIONS, PICTURES, REPRESENTATION
from tests.evaluate.runs import prepare_run


def test_shares_of_units_are_those_counted_by_hand():
    # The largest value is 10, so that 0.1 is the threshold: 1, 2 and 2 of 4 units exceed it, and the last never does.
    features = torch.tensor([[10.0, 0.05, 0, 0.1], [0.2, -0.3, 0, 0], [0, 1.0, 5.0, 0]], dtype=torch.float64)
    found = activity(features)
    assert found.active == pytest.approx((1 + 2 + 2) / 12)
    assert found.dead == pytest.approx(1 / 4)


def test_units_that_are_not_zero_are_counted_however_small():
    features = torch.tensor([[10.0, 1e-9, 0, 0], [0, 0, 0, 0], [-2.0, 1e-30, 5.0, 0]], dtype=torch.float64)
    found = activity(features)
    assert found.nonzero == pytest.approx((2 + 0 + 3) / 12)
    assert found.always_zero == pytest.approx(1 / 4)


def test_an_effective_rank_is_the_number_of_directions_that_count():
    # Centred, with singular values in the ratio 1 : 1, then 3 : 1, and a constant unit that adds nothing.
    equal = torch.tensor([[1.0, 0, 7], [-1, 0, 7], [0, 1, 7], [0, -1, 7]], dtype=torch.float64)
    assert activity(equal).effective_rank == pytest.approx(2)
    unequal = equal * torch.tensor([3.0, 1, 1])
    assert activity(unequal).effective_rank == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    wide = torch.cat([unequal, torch.full((4, 3), 2.0)], dim=1)  # More units than images.
    assert activity(wide).effective_rank == pytest.approx(activity(unequal).effective_rank)


def test_the_similarity_of_two_groupings_is_that_worked_out_by_hand():
    # Pairs of the same group: 1/3, others: -1/6. The two groupings share none of their pairs.
    rows, columns = (torch.tensor(values, dtype=torch.float64)[:, None] for values in ([0, 0, 1, 1], [0, 1, 0, 1]))
    assert similarities(rows).tolist() == pytest.approx(np.array([2, -1, -1, -1, -1, 2]) / math.sqrt(12))
    assert float(similarities(rows) @ similarities(columns)) == pytest.approx(-0.5)
    assert float(similarities(rows) @ similarities(5 - 3 * rows)) == pytest.approx(1)


def test_a_similarity_is_the_unbiased_estimate_of_its_definition():
    first, second = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def dependence(one: torch.Tensor, other: torch.Tensor) -> float:
        """Song et al. 2012, equation 4: the mean over all ordered choices of four different images."""
        k, m = one @ one.T, other @ other.T
        chosen = itertools.permutations(range(6), 4)
        return float(torch.stack([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in chosen]).mean())

    expected = dependence(first, second) / math.sqrt(dependence(first, first) * dependence(second, second))
    assert float(similarities(first) @ similarities(second)) == pytest.approx(expected)


@pytest.fixture
def loaded(model, make_config, data) -> LoadedModel:
    config = make_config(classes=6, runs=2, lr=(0.001, 0.01), eval_freq=3, measure=("representation", "confusions"))
    return LoadedModel(model, ModelCard("anml", {}, (1, 28, 28), "m", "omniglot", "meta", step=7, seed=1), data, config)


def test_confusions_are_the_answers_when_all_is_learned(loaded: LoadedModel, tmp_path: Path):
    results = list(run_sweep(loaded, "olft", sweep_trajectories(loaded.config)))
    write_measures(loaded, "olft", tmp_path / "a.csv", results, has_first=False)
    table: Any = pd.read_parquet(tmp_path / f"a{CONFUSIONS}")
    assert not (tmp_path / f"a{REPRESENTATION}").exists()
    ends = [row for result in results for row in result.rows if row.classes_trained == 6]
    for row in ends:
        of_run = table[(table["lr"] == row.lr) & (table["run"] == row.run)]
        assert of_run["answers"].sum() == 6 * 5
        right = of_run[of_run["position"] == of_run["predicted"]]
        assert right["answers"].sum() / 30 == pytest.approx(row.test_acc)
        assert (right["label"] == right["predicted_label"]).all()
        assert of_run[of_run["label"] == of_run["label"].iloc[0]]["position"].nunique() == 1
    assert set(zip(table["model"], table["checkpoint_step"], table["flavor"], strict=True)) == {("m", 7, "olft")}
    pictures: Any = pd.read_parquet(tmp_path / f"a{PICTURES}")
    first = Image.open(io.BytesIO(pictures["picture"][3]))
    assert np.array_equal(np.asarray(first), loaded.data.images[3, 0, 0].numpy())


def test_no_class_is_named_by_a_diverged_model_or_an_output_without_one():
    logits = torch.tensor([[0.0, 1, 0], [0, 0, 1], [torch.nan, 1, 0]])
    assert answers(logits, classes=2).tolist() == [1, -1, -1]


def test_a_representation_is_what_a_run_encodes(loaded: LoadedModel, tmp_path: Path):
    write_measures(loaded, "olft", tmp_path / "a.csv", [], has_first=True)
    table = pd.read_parquet(tmp_path / f"a{REPRESENTATION}")
    assert table["run"].tolist() == [0, 1]
    for run, row in table.iterrows():
        prepared = prepare_run(loaded.model, loaded.config, loaded.data, Shape(6, 10, 5), int(str(run)))
        expected = activity(prepared.test_inputs.double())
        assert (row["active"], row["effective_rank"]) == pytest.approx((expected.active, expected.effective_rank))
        assert (row["nonzero"], row["always_zero"]) == (expected.nonzero, expected.always_zero)
    assert len(table["similarities"][0]) == 30 * 29 // 2
    assert [len(table[name][0]) for name in ("map", "tsne")] == [30 * 2, 30 * 2]
    assert [len(table[name][1]) for name in ("map", "tsne")] == [0, 0]
    write_measures(loaded, "olft", tmp_path / "b.csv", [], has_first=True)
    assert np.array_equal(pd.read_parquet(tmp_path / f"b{REPRESENTATION}")["tsne"][0], table["tsne"][0])


def test_a_map_has_the_two_largest_singular_vectors_of_centred_features(loaded: LoadedModel, tmp_path: Path):
    write_measures(loaded, "olft", tmp_path / "a.csv", [], has_first=True)
    points = pd.read_parquet(tmp_path / f"a{REPRESENTATION}")["map"][0].reshape(30, 2)
    features = prepare_run(loaded.model, loaded.config, loaded.data, Shape(6, 10, 5), 0).test_inputs.double()
    left, values, _ = torch.linalg.svd(features - features.mean(dim=0))
    expected = (left[:, :2] * values[:2]).numpy()
    signs = np.sign((points * expected).sum(axis=0))  # A singular vector may have either.
    assert points * signs == pytest.approx(expected, abs=1e-4 * float(values[0]))


def test_a_diverged_representation_is_left_out(loaded: LoadedModel, tmp_path: Path):
    with torch.no_grad():
        loaded.model.get_parameter("rln.convBlock1.conv.weight").fill_(torch.inf)
    with pytest.warns(UserWarning, match="not finite"):
        write_measures(loaded, "olft", tmp_path / "a.csv", [], has_first=True)
    assert len(pd.read_parquet(tmp_path / f"a{REPRESENTATION}")) == 0


def test_too_few_images_are_refused(make_config):
    [(key, _)] = check_eval(make_config(classes=3, test_examples=1, measure=("representation",)), None)
    assert key == "measure"
