"""What an evaluation job says of its results."""

from anml.evaluate_job import mean_curves
from anml.results import ResultRow


def row(step: int, test_acc: float, train_examples: int = 10, lr: float | None = 0.01, run: int = 0) -> ResultRow:
    return ResultRow(
        "olft", "sequential", "anml", "omniglot", 1, 20, train_examples, 5, lr, 1, run, 1, step, step // train_examples,
        1.0, test_acc, 1.0, 1.0,
    )  # fmt: skip


def test_a_curve_is_the_mean_over_runs_of_a_learning_rate():
    rows = [row(10, 0.5), row(10, 0.7, run=1), row(10, 0.2, lr=0.1), row(0, 0.3, lr=None)]
    assert mean_curves(rows) == {
        0: {"test/accuracy": 0.3, "train/accuracy": 1.0},
        10: {"test/lr 0.01": 0.6, "train/lr 0.01": 1.0, "test/lr 0.1": 0.2, "train/lr 0.1": 1.0},
    }


def test_sizes_are_curves_of_their_own():
    # Step 60: six classes of 10 examples, or two of 30.
    curves = mean_curves([row(60, 0.5, train_examples=10), row(60, 0.9, train_examples=30)])
    assert curves[60]["test/20 classes, 10 train, 5 test, lr 0.01"] == 0.5
    assert curves[60]["test/20 classes, 30 train, 5 test, lr 0.01"] == 0.9
