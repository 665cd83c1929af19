import math
import statistics

import numpy as np
import pytest

from anml.report.statistics import estimate, half_width, runs_needed, std, t_quantile


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # As printed in any table of Student's t, two-sided 95%.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (29, 2.045), (60, 2.000), (120, 1.980)],
)
def test_quantiles_are_those_of_the_printed_table(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def test_large_samples_approach_the_normal_distribution():
    assert t_quantile(100_000) == pytest.approx(1.96, abs=1e-3)


def test_interval_by_hand():
    # Mean 0.5, squared deviations 0.01 + 0 + 0.01, so s = 0.1; t(2) = 4.3027; 4.3027 * 0.1 / sqrt(3) = 0.24841.
    assert std([0.4, 0.5, 0.6]) == pytest.approx(0.1)
    assert half_width([0.4, 0.5, 0.6]) == pytest.approx(0.24841, abs=1e-5)


def test_std_is_that_of_a_sample():
    values = [0.1, 0.25, 0.7, 0.3]
    assert std(values) == pytest.approx(statistics.stdev(values))


def test_one_run_has_no_interval():
    only = estimate([(1, 0.4)])
    assert only.mean == 0.4
    assert math.isnan(only.std)
    assert math.isnan(only.half_width)


def test_interval_is_over_seeds_from_three_seeds_on():
    three = estimate([(seed, 0.1 * seed + wobble) for seed in (1, 2, 3) for wobble in (-0.05, 0.0, 0.05)])
    assert (three.mean, three.over) == (pytest.approx(0.2), "seeds")
    assert three.half_width == pytest.approx(half_width([0.1, 0.2, 0.3]))
    assert (three.runs, three.seeds) == (9, 3)


def test_interval_is_over_runs_below_three_seeds():
    two = estimate([(1, 0.1), (1, 0.2), (2, 0.3), (2, 0.4)])
    assert two.over == "runs"
    assert two.half_width == pytest.approx(half_width([0.1, 0.2, 0.3, 0.4]))


def test_each_seed_counts_the_same_when_runs_are_missing():
    assert estimate([(1, 0.2), (1, 0.2), (1, 0.2), (2, 0.6)]).mean == pytest.approx(0.4)


@pytest.mark.parametrize("spread", [0.01, 0.02, 0.06])
def test_an_interval_keeps_its_coverage_where_its_width_decided_how_many_runs_there_are(spread):
    first, wanted, at_most, draws = 5, 0.01, 30, 10_000
    runs = np.random.default_rng(1).normal(0.0, spread, (draws, at_most))
    counts = [min(at_most, runs_needed(std(values[:first]), first, wanted)) for values in runs]
    pairs = zip(runs, counts, strict=True)
    estimates = [estimate([(1, value) for value in values[:count]], list(values[:first])) for values, count in pairs]
    assert sum(abs(e.mean) <= e.half_width for e in estimates) >= 0.94 * draws
    assert all(e.half_width <= wanted for e in estimates if e.runs < at_most)
