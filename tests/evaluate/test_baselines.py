"""Baselines against plain references in float64, in any order of examples; what the results say of their cost."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch.nn.functional import cross_entropy

from anml.checkpoints import ModelCard
from anml.config.evaluation import EvalConfig
from anml.config.protocols import PROTOCOLS
from anml.evaluate.baselines import BaselineLearner, hellinger
from anml.evaluate.prepared_run import Shape
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from anml.results import ClassRow
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
    return -(pairwise_distances(QUERIES, NearestCentroid().fit(INPUTS, LABELS).centroids_) ** 2)


def nearest_mean_by_angle(_: EvalConfig) -> np.ndarray:
    return 1 - pairwise_distances(QUERIES, NearestCentroid().fit(INPUTS, LABELS).centroids_, metric="cosine")


def discriminant(config: EvalConfig) -> np.ndarray:
    analysis = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=config.shrinkage or 0.1, priors=[1 / CLASSES] * CLASSES
    )
    return analysis.fit(INPUTS, LABELS).decision_function(QUERIES) - np.log(1 / CLASSES)


def posteriors(config: EvalConfig) -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
    """Yield the mean [d] of each class, and alpha and beta [d] of its precision."""
    examples = INPUTS.reshape(CLASSES, EACH, FEATURES).numpy()
    for own in examples:
        alpha = config.prior_alpha or 10
        beta = config.prior_beta or alpha * examples.var(axis=1).mean()
        yield own.mean(axis=0), alpha + EACH / 2, beta + EACH * own.var(axis=0) / 2


def predictive(config: EvalConfig) -> np.ndarray:
    scales = [(m, a, np.sqrt(b * (EACH + 1) / (a * EACH))) for m, a, b in posteriors(config)]
    return np.stack([scipy.stats.t.logpdf(QUERIES, 2 * a, m, s).sum(axis=1) for m, a, s in scales], axis=1)


def mode(config: EvalConfig) -> np.ndarray:
    stds = [(m, np.sqrt(b / (a - 0.5))) for m, a, b in posteriors(config)]
    return np.stack([scipy.stats.norm.logpdf(QUERIES, m, s).sum(axis=1) for m, s in stds], axis=1)


def ridge(config: EvalConfig) -> np.ndarray:
    return Ridge(alpha=config.l2 or 1.0).fit(INPUTS, np.eye(CLASSES)[LABELS]).predict(QUERIES)


def neighbours(config: EvalConfig) -> np.ndarray:
    found = KNeighborsClassifier(config.neighbours or 1, metric=config.metric or "euclidean").fit(INPUTS, LABELS)
    return found.predict_proba(QUERIES)


def regression(config: EvalConfig) -> np.ndarray:
    exact = LogisticRegression(C=1 / (config.l2 or 1.0), solver="newton-cg", tol=1e-12, max_iter=10_000)
    return exact.fit(INPUTS, LABELS).decision_function(QUERIES)


# By protocol and options: the reference's logits.
REFERENCES: list[tuple[str, dict[str, Any], Callable[[EvalConfig], np.ndarray]]] = [
    ("ncm", {}, nearest_mean),
    ("ncm", {"metric": "cosine"}, nearest_mean_by_angle),
    ("slda", {}, discriminant),
    ("slda", {"shrinkage": 0.5}, discriminant),
    ("gemcl", {}, predictive),
    ("gemcl", {"prior_alpha": 2.0, "prior_beta": 0.5}, predictive),
    ("gemcl", {"posterior": "map"}, mode),
    ("rls", {}, ridge),
    ("rls", {"l2": 10.0}, ridge),
    ("knn", {}, neighbours),
    ("knn", {"neighbours": 5, "metric": "cosine"}, neighbours),
    ("logistic", {"l2": 3.0}, regression),
]
# All but this one are exact. An iterative solver stops near the solution: its gradient says how near, below.
TOLERANCE = {"logistic": 1e-4}


def test_every_baseline_has_a_reference() -> None:
    assert {name for name, _, _ in REFERENCES} == set(BASELINES)


@pytest.mark.parametrize(("method", "options", "reference"), REFERENCES)
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(len(LABELS))), parts=st.sampled_from([1, 4, 30]))
def test_logits_are_those_of_the_reference_in_any_order(method, options, reference, order, parts) -> None:
    head = learned(method, torch.tensor(order), parts, **options)
    expected = torch.as_tensor(reference(EvalConfig(eval_method=method, **options)))
    assert (head.logits(QUERIES) - expected).abs().max() <= TOLERANCE.get(method, 1e-9)


@pytest.mark.parametrize("l2", [0.1, 3.0])
def test_logistic_regression_stops_where_its_gradient_is_nearly_zero(l2: float) -> None:
    head = learned("logistic", torch.arange(len(LABELS)), l2=l2)
    head.logits(QUERIES)
    weights, biases = (value.requires_grad_(True) for value in head.fitted[1:])
    loss = cross_entropy(INPUTS @ weights.T + biases, LABELS) + l2 / 2 * weights.square().sum() / len(LABELS)
    gradients = torch.autograd.grad(loss, (weights, biases))
    assert max(gradient.abs().max() for gradient in gradients) <= 1e-6  # scikit-learn's `tol`.


def test_distances_of_mapped_features_are_hellinger_distances() -> None:
    shares = INPUTS / INPUTS.sum(dim=1, keepdim=True)
    overlaps = shares.sqrt() @ shares.sqrt().T  # Bhattacharyya's coefficients.
    mapped = hellinger(INPUTS)
    assert (torch.cdist(mapped, mapped).square() - 2 * (1 - overlaps)).abs().max() < 1e-12
    assert torch.equal(hellinger(-INPUTS), -mapped)


@pytest.mark.parametrize("method", BASELINES)
def test_every_baseline_may_learn_mapped_features(method: str, model, data, make_config) -> None:
    config = make_config(eval_method=method, feature_map="hellinger", classes=4)
    prepared = prepare_run(model, config, data, Shape(4, 15, 5), 0)
    learner = BaselineLearner([prepared], config, config.protocol.load_baseline())
    learner.learn_each(0, 60)
    head = config.protocol.load_baseline()(4, prepared.train_inputs.shape[1], config, torch.device("cpu"))
    head.learn(hellinger(prepared.train_inputs.double()), prepared.train_labels)
    [(_, logits)] = learner.logits()
    assert torch.equal(logits, head.logits(hellinger(prepared.test_inputs.double())))


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_learns_and_tells_what_it_costs(method: str, model, data, make_config) -> None:
    config = make_config(eval_method=method, eval_freq=[3, 12], classes=12)
    card = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1)
    [result] = run_sweep(LoadedModel(model, card, data, config), "a", sweep_trajectories(config))
    first, last = result.rows
    assert (first.lr, first.classes_trained, last.classes_trained, last.step) == (None, 3, 12, 120)
    assert last.test_acc > 0.15  # By chance it is 0.08.
    by_class = [ClassRow(*row).test_acc for row in result.class_rows]
    assert last.test_acc == pytest.approx(np.mean(by_class[12:]))
    assert set(by_class[3:12]) == {0.0}  # Not learned yet, never chosen.
    assert (last.kept_bytes or 0) >= (first.kept_bytes or 0) > 0
    assert (last.seconds or 0) > (first.seconds or 0) > 0


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("sequential", lambda head, image: 3 * head),
        ("iid", lambda head, image: 3 * head + 12 * 10 * image),
        ("zero_shot", lambda head, image: head + 7 * image),
        ("replay", lambda head, image: 3 * head + 20 * image),
        ("ncm", lambda head, image: 8 * 12 * (1 + image // 4)),
    ],
)
def test_what_is_kept_is_weights_moments_and_examples(method: str, expected, model, data, make_config) -> None:
    config = make_config(eval_method=method, init_size=7, replay_size=20, batch_size=4, eval_freq=0)
    card = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1)
    [result] = run_sweep(LoadedModel(model, card, data, config), "a", sweep_trajectories(config))
    features = prepare_run(model, config, data, Shape(12, 10, 5), 0).train_inputs.shape[1]
    assert result.rows[-1].kept_bytes == expected(4 * 30 * (features + 1), 4 * features)
