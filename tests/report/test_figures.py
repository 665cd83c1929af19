import math

import pytest

from anml.report.figures import (
    TrainingLog,
    draw_classes,
    draw_rates,
    draw_training,
    read_training,
    shown_checkpoints,
    smoothed,
)
from anml.report.style import FLAVORS, Look, figure_style, find_looks, save_png, spread
from anml.report.tables import best_rates, rate_results, read_scores


def drawn(figure, tmp_path) -> bytes:
    with figure_style():
        save_png(figure, tmp_path / "figure.png")
    return (tmp_path / "figure.png").read_bytes()


def looks_of(rows) -> dict[str, Look]:
    return find_looks([row.flavor for row in rows], FLAVORS)


def both(rows, tmp_path) -> None:
    """Draw both figures of results."""
    points = rate_results(rows)
    with figure_style():
        figures = [
            draw_rates(points, looks_of(rows), "episodes", "drawings"),
            draw_classes(rows, best_rates(points), looks_of(rows), "steps", "images"),
        ]
    for figure in figures:
        if figure is not None:
            drawn(figure, tmp_path)


def test_panels_and_lines_are_checkpoints_and_flavors(build):
    rows = read_scores(build().results().experiment)[0]
    with figure_style():
        figure = draw_rates(rate_results(rows), looks_of(rows), "episodes", "drawings")
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["untrained", "after 200 episodes", "after 600 episodes"]
    assert figure.axes[0].get_xscale() == "log"
    assert "5 drawings" in figure.axes[0].get_ylabel()
    assert "4 runs" in figure.axes[0].get_ylabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == ["chance", "no-sgd (no learning rate)", "olft"]


def test_nothing_to_draw(row):
    assert draw_rates([], {}, "episodes", "drawings") is None
    assert draw_classes([], [], {}, "episodes", "drawings") is None
    assert draw_training([], [600], "episodes") is None
    zero_shot = rate_results([row(protocol="zero_shot", lr=None, step=0)])
    assert draw_rates(zero_shot, {}, "episodes", "drawings") is None


@pytest.mark.parametrize(
    "changes",
    [
        [{}],
        [{"test_acc": 0.0, "train_acc": 0.0}],
        [{"protocol": "zero_shot", "lr": None, "step": 0}],
        [{"lr": 0.001}, {"lr": 0.01}],
        [{"flavor": "a-long-name-for-a-flavor" * 2 + str(number)} for number in range(12)],
        [{"checkpoint_step": step, "classes": c, "classes_trained": c} for step in range(9) for c in (1, 2, 5, 9)],
        [{"train_examples": n, "classes": 1, "classes_trained": 1} for n in (1, 5, 10, 20, 30)],
    ],
    ids=["one", "zero", "zero-shot", "one-run", "many-flavors", "many-panels", "many-amounts"],
)
def test_odd_results_are_drawn_without_a_warning(row, changes, tmp_path):
    both([row(**change) for change in changes], tmp_path)


@pytest.mark.parametrize(
    "losses",
    [
        [1.0],
        [2.0, 1.0],
        [0.0, 0.0],
        [1000.0, 0.001],
        [math.nan, math.inf],
        [-1.0, 5.0],
        [10.0 / n for n in range(1, 90)],
    ],
    ids=["one", "two", "zeros", "log", "diverged", "negative", "many"],
)
def test_odd_trainings_are_drawn_without_a_warning(losses, tmp_path):
    lines = [{"step": float(n), "loss": loss, "accuracy": 0.5} for n, loss in enumerate(losses, 1)]
    with figure_style():
        figure = draw_training([TrainingLog("", lines)], [1, 2], "episodes")
    assert figure is not None
    assert drawn(figure, tmp_path).startswith(b"\x89PNG")


def test_training_has_a_line_per_seed_and_marks_at_checkpoints(build):
    builder = build(seeds=(1, 2, 10)).metrics(30, with_validation=True)
    logs = read_training(builder.experiment, builder.config.trainings)
    assert [log.name for log in logs] == ["seed 1", "seed 2", "seed 10"]
    with figure_style():
        figure = draw_training(logs, builder.config.checkpoint_steps, "episodes")
    assert figure is not None
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "seed 10 (running mean)" in labels
    assert "seed 10, validation" in labels
    assert "evaluated checkpoint" in labels


def test_running_mean_keeps_a_constant_and_its_ends():
    values, window = smoothed([0.5] * 50)
    assert window == 5
    assert values == pytest.approx([0.5] * 50)
    assert smoothed([1.0, 2.0])[1] == 1


def test_png_has_no_time_and_no_version_in_it(build, tmp_path):
    rows = read_scores(build().results().experiment)[0]

    def png():
        with figure_style():
            figure = draw_classes(rows, best_rates(rate_results(rows)), looks_of(rows), "episodes", "drawings")
        return drawn(figure, tmp_path)

    first = png()
    assert first == png()
    assert b"Software" not in first
    assert b"tEXt" not in first


def test_users_own_settings_change_nothing(build, tmp_path):
    import matplotlib

    logs = read_training(build().metrics(20).experiment)

    def png():
        with figure_style():
            return drawn(draw_training(logs, [200], "episodes"), tmp_path)

    usual = png()
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "figure.dpi": 30}):
        assert png() == usual


def test_choice_of_panels_keeps_first_and_last(row):
    assert spread([1, 2, 3, 4, 5, 6], 3) == [1, 3, 6]
    assert spread([1, 2], 3) == [1, 2]
    points = rate_results([row(checkpoint_step=step) for step in range(0, 7000, 1000)])
    assert shown_checkpoints(points) == [0, 1000, 3000, 6000]


def test_a_row_of_more_classes_is_shown_to_its_end(row):
    rows = [
        row(flavor=flavor, dataset=dataset, classes=classes, classes_trained=learned, step=15 * learned)
        for flavor, dataset, classes in (("olft", "glyphs", 20), ("held-out", "glyphs-validation", 30))
        for learned in (10, classes)
    ]
    figure = draw_classes(rows, best_rates(rate_results(rows)), looks_of(rows), "episodes", "drawings")
    assert figure is not None
    assert [panel.get_xlim()[1] >= 30 for panel in figure.axes] == [True, True]
    assert "held-out\nbackground classes" in figure.axes[1].get_ylabel()
