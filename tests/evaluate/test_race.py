"""Racing: which rates go on, and that the winner is that of the whole sweep."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from anml.evaluate.race import FAMILY_WISE_ERROR, gap, looks, narrowed


def test_the_gap_is_tested_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anml.evaluate.race._RUN_SPREAD", 0)
    best, other = np.random.default_rng(1).random((2, 1, 40))
    difference, p = gap(best, other)
    assert difference == pytest.approx((best - other).mean())
    test: Any = ttest_1samp([*(best - other)[0], 1, -1], 0, alternative="greater")
    assert p == pytest.approx(test.pvalue)


def test_of_equal_rates_any_one_is_seldom_stopped() -> None:
    spread = 0.01  # Of each rate's mean over runs, beyond what classes explain.
    generator, draws, runs, rates, classes = np.random.default_rng(1), 100, 10, 12, 300
    level = FAMILY_WISE_ERROR / (len(looks(runs)) * (rates - 1))
    stopped = 0
    for _ in range(draws):
        means = generator.normal(0.7, 0.2, (1, runs, classes)) + generator.normal(0, spread, (rates, runs, 1))
        each = means + generator.normal(0, 0.2, (rates, runs, classes))
        scores = generator.binomial(5, each.clip(0, 1)) / 5
        ends = dict.fromkeys(map(float, range(rates)), classes)
        for look in looks(runs):
            so_far = {(rate, classes): scores[int(rate), :look] for rate, end in ends.items() if end}
            ends, _ = narrowed(ends, so_far, level)
        stopped += not ends[0]
    assert stopped <= FAMILY_WISE_ERROR * draws


def test_runs_that_disagree_prove_little() -> None:
    best, other = np.full((2, 40), 0.9), np.array([[0.1] * 40, [0.8] * 40])
    assert gap(best[:1], other[:1])[1] < 1e-6
    assert gap(best, other)[1] > 0.1


def test_a_rate_goes_on_to_the_most_classes_for_which_it_may_be_best() -> None:
    few, many = np.ones((1, 20)), np.ones((1, 40))
    accuracies = {
        (0.1, 20): few * 0.9, (0.1, 40): many * 0.1,
        (0.01, 20): few * 0.8, (0.01, 40): many * 0.6,
        (0.001, 20): few * 0.1, (0.001, 40): many * 0.1,
    }  # fmt: skip
    ends, stopped = narrowed({0.1: 40, 0.01: 40, 0.001: 40}, accuracies, level=0.01)
    assert ends == {0.1: 20, 0.01: 40, 0.001: 0}
    assert [(s.lr, s.goes_to, s.classes, s.best) for s in stopped] == [(0.1, 20, 40, 0.01), (0.001, 0, 40, 0.01)]
    assert str(stopped[1]).startswith("lr 0.001 is stopped after 1 run: 0.500 less than lr 0.01 with 40 classes")


def test_the_first_of_few_classes_stop_nothing() -> None:
    accuracies = {(0.1, 1): np.ones((1, 1)), (0.01, 1): np.zeros((1, 1))}
    assert narrowed({0.1: 1, 0.01: 1}, accuracies, level=0.05) == ({0.1: 1, 0.01: 1}, [])


def test_rates_are_compared_more_often_while_few_runs_are_made() -> None:
    assert looks(10) == (1, 2, 3, 5, 8)
    assert looks(1) == ()


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("recorded_sweep_*.npz")), ids=lambda file: file.stem)
def test_the_winner_of_a_race_is_that_of_the_whole_sweep_at_a_third_of_its_cost(file: Path) -> None:
    # A model of trained_anmls/, 12 rates, 20 runs: right answers of 5 for each class, [rates, runs, classes].
    with np.load(file) as recorded:
        rates = recorded["rates"].tolist()
        scores = {count: recorded[f"after_{count}"] / 5 for count in (10, 50, 100)}
    generator, runs, costs = np.random.default_rng(1), 10, []
    level = FAMILY_WISE_ERROR / (len(looks(runs)) * (len(rates) - 1))
    for _ in range(100):
        order = generator.permutation(20)[:runs]
        ends, cost = dict.fromkeys(rates, 100), 0
        for first, last in pairwise((0, *looks(runs), runs)):
            cost += (last - first) * sum(ends.values())
            so_far = {
                (rate, count): by_rate[order[:last]]
                for count, every in scores.items()
                for rate, by_rate in zip(rates, every, strict=True)
                if count <= ends[rate]
            }
            ends, _ = narrowed(ends, so_far, level) if last < runs else (ends, [])
        for count, every in scores.items():
            winner = rates[int(every[:, order].mean(axis=(1, 2)).argmax())]
            assert ends[winner] >= count  # It has all its runs, so that it wins the race too.
        costs.append(cost / (runs * len(rates) * 100))
    assert max(costs) <= 1 / 3
