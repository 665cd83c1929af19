"""Baselines against plain references in float64, in any order of examples; what the results say of their cost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestCentroid

from anml.checkpoints import ModelCard
from anml.config.evaluation import EvalConfig
from anml.config.protocols import PROTOCOLS
from anml.evaluate.prepared_run import Shape
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from tests.evaluate.runs import prepare_run

CLASSES, FEATURES, EACH = 5, 7, 6
LABELS = torch.arange(CLASSES).repeat_interleave(EACH)
GENERATOR = torch.Generator().manual_seed(1)
MEANS = torch.randn(CLASSES, FEATURES, dtype=torch.float64, generator=GENERATOR)
NOISE = torch.randn(len(LABELS), FEATURES, dtype=torch.float64, generator=GENERATOR)
INPUTS = (MEANS[LABELS] + 0.8 * NOISE).abs()
QUERIES = (MEANS.repeat(4, 1) + torch.randn(20, FEATURES, dtype=torch.float64, generator=GENERATOR)).abs()

BASELINES = sorted(name for name, protocol in PROTOCOLS.items() if protocol.baseline)


def learned(method: str, order: torch.Tensor, parts: list[int] | int = 1, **options: Any) -> Any:
    """Return the head of a protocol after the examples in this order, so many at a time."""
    config = EvalConfig(eval_method=method, **options)
    head = config.protocol.load_baseline()(CLASSES, FEATURES, config, INPUTS.device)
    for rows in order.split(parts):
        head.learn(INPUTS[rows], LABELS[rows])
    return head


def nearest_mean(_: EvalConfig) -> np.ndarray:
    return -pairwise_distances(QUERIES, NearestCentroid().fit(INPUTS, LABELS).centroids_)


def nearest_mean_by_angle(_: EvalConfig) -> np.ndarray:
    return 1 - pairwise_distances(QUERIES, NearestCentroid().fit(INPUTS, LABELS).centroids_, metric="cosine")


# By protocol and options: the reference's logits.
REFERENCES: list[tuple[str, dict[str, Any], Callable[[EvalConfig], np.ndarray]]] = [
    ("ncm", {}, nearest_mean),
    ("ncm", {"metric": "cosine"}, nearest_mean_by_angle),
]


def test_every_baseline_has_a_reference() -> None:
    assert {name for name, _, _ in REFERENCES} == set(BASELINES)


@pytest.mark.parametrize(("method", "options", "reference"), REFERENCES)
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(len(LABELS))), parts=st.sampled_from([1, 4, 30]))
def test_logits_are_those_of_the_reference_in_any_order(method, options, reference, order, parts) -> None:
    head = learned(method, torch.tensor(order), parts, **options)
    expected = torch.as_tensor(reference(EvalConfig(eval_method=method, **options)))
    assert (head.logits(QUERIES) - expected).abs().max() <= 1e-9


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_learns_and_tells_what_it_costs(method: str, model, data, make_config) -> None:
    config = make_config(eval_method=method, eval_freq=[3, 12], classes=12)
    card = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1)
    [result] = run_sweep(LoadedModel(model, card, data, config), "a", sweep_trajectories(config))
    first, last = result.rows
    assert (first.lr, first.classes_trained, last.classes_trained, last.step) == (None, 3, 12, 120)
    assert last.test_acc > 0.4
    assert last.test_acc == pytest.approx(np.mean([row.test_acc for row in result.class_rows[12:]]))
    assert {row.test_acc for row in result.class_rows[3:12]} == {0.0}  # Not learned yet, never chosen.
    assert (last.kept_bytes or 0) >= (first.kept_bytes or 0) > 0
    assert (last.seconds or 0) > (first.seconds or 0) > 0


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("sequential", lambda head, image: 3 * head),
        ("iid", lambda head, image: 3 * head + 12 * 10 * image),
        ("zero_shot", lambda head, image: head + 7 * image),
        ("ncm", lambda head, image: 8 * 12 * (1 + image // 4)),
    ],
)
def test_what_is_kept_is_weights_moments_and_examples(method: str, expected, model, data, make_config) -> None:
    config = make_config(eval_method=method, init_size=7, eval_freq=0)
    card = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1)
    [result] = run_sweep(LoadedModel(model, card, data, config), "a", sweep_trajectories(config))
    features = prepare_run(model, config, data, Shape(12, 10, 5), 0).train_inputs.shape[1]
    assert result.rows[-1].kept_bytes == expected(4 * 30 * (features + 1), 4 * features)
