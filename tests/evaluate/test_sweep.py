"""A whole flavor: every trajectory once, rows that say what was measured, and nothing but the seed decides them."""

import dataclasses
import gc
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._C._functorch import is_functorch_wrapped_tensor

from anml.checkpoints import ModelCard
from anml.config.evaluation import EvalConfig
from anml.errors import JobError
from anml.evaluate import learner
from anml.evaluate.learner import LaneLearner
from anml.evaluate.prepared_run import RunPreparer, Shape
from anml.evaluate.sweep import LoadedModel, Trajectory, blocks, run_sweep, seconds_saved, sweep_trajectories
from anml.native import available
from anml.plugins import code_checksum
from anml.results import ClassRow, ResultRow, TrajectoryResult


@pytest.fixture
def run(model, data) -> Callable[..., list[TrajectoryResult]]:
    """Run a sweep, or some of its trajectories."""
    card = ModelCard("anml", {}, (1, 28, 28), "ANML small", "omniglot", "meta", step=400, seed=7)

    def run_part(config: EvalConfig, part: slice = slice(None), **callbacks: Any) -> list[TrajectoryResult]:
        loaded = LoadedModel(model, card, data, config)
        return list(run_sweep(loaded, "olft", sweep_trajectories(config)[part], **callbacks))

    return run_part


@pytest.fixture
def config(make_config) -> EvalConfig:
    return make_config(classes=[3, 6], lr=[0.001, 0.01], runs=2, eval_freq=2, train_examples=3, test_examples=2)


def test_trajectories_are_the_product_with_learning_rates_innermost(config):
    trajectories = sweep_trajectories(config)
    assert len(trajectories) == len(set(trajectories)) == config.count_trajectories() == 8
    assert [trajectory.lr for trajectory in trajectories] == [0.001, 0.01] * 4
    assert trajectories[0].shape == Shape(3, 3, 2)
    assert trajectories[-1].shape == Shape(6, 3, 2)


def test_every_list_of_sizes_takes_part_in_the_product(make_config):
    config = make_config(classes=[3, 6], train_examples=[1, 2], test_examples=[2, 3], lr=[0.1, 0.01, 0.001], runs=2)
    trajectories = sweep_trajectories(config)
    wanted = {
        (Shape(classes, train, test), run, lr)
        for classes in (3, 6) for train in (1, 2) for test in (2, 3) for run in (0, 1) for lr in (0.1, 0.01, 0.001)
    }  # fmt: skip
    assert len(trajectories) == len(wanted)
    assert {(trajectory.shape, trajectory.run, trajectory.lr) for trajectory in trajectories} == wanted


def test_zero_shot_has_no_learning_rate(make_config):
    config = make_config(eval_method="zero_shot", lr=[0.1, 0.2], runs=3)
    assert (
        [trajectory.lr for trajectory in sweep_trajectories(config)]
        == [None] * 3
        == [None] * config.count_trajectories()
    )


def test_rows_say_what_was_measured(run, config):
    row = run(config)[-1].rows[1]
    accuracies: dict[str, Any] = {"train_acc": 0.0, "test_acc": 0.0, "train_top5": 0.0, "test_top5": 0.0}
    assert row.kept_bytes
    assert dataclasses.replace(row, **accuracies, kept_bytes=None) == ResultRow(
        flavor="olft", protocol="sequential", model="ANML small", dataset="noise", checkpoint_step=400, classes=6,
        train_examples=3, test_examples=2, lr=0.01, train_seed=7, run=1, epoch=1, step=6, classes_trained=2,
        **accuracies, code=code_checksum(),
    )  # fmt: skip


def test_a_row_is_the_mean_over_the_classes_learned_so_far(run, config):
    for result in run(config):
        for row in result.rows:
            per_class = [c for c in map(ClassRow._make, result.class_rows) if c.step == row.step]
            assert [c.position for c in per_class] == list(range(row.classes))
            learned = [c for c in per_class if c.position < row.classes_trained]
            assert row.train_acc == pytest.approx(sum(c.train_acc for c in learned) / row.classes_trained)
            assert row.test_acc == pytest.approx(sum(c.test_acc for c in learned) / row.classes_trained)


def test_iid_rows_are_means_over_all_classes(run, make_config):
    config = make_config(eval_method="iid", classes=6, batch_size=16, lr=0.01, train_examples=3, test_examples=2)
    [result] = run(config)
    assert result.rows[-1].classes_trained == 6
    assert result.rows[-1].test_acc == pytest.approx(
        sum(c.test_acc for c in map(ClassRow._make, result.class_rows)) / 6
    )
    assert result.rows[-1].test_top5 >= result.rows[-1].test_acc


def test_the_parts_of_an_array_job_are_those_of_the_whole(run, config):
    parts = [result for start in range(0, 8, 3) for result in run(config, slice(start, start + 3))]
    assert parts == run(config)


def test_a_part_is_run_by_the_engine_of_the_whole(model, data, config, monkeypatch):
    card = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1)
    # Pays for eight trajectories, not for one.
    preparer = RunPreparer(model, config, data)
    seconds = [seconds_saved(preparer, runs, trajectories) for runs, trajectories in ((1, 1), (2, 8))]
    monkeypatch.setattr("anml.evaluate.sweep._BUILD", sum(seconds) / 2)
    told: list[str] = []
    for trajectories in (sweep_trajectories(config), sweep_trajectories(config)[:1]):
        next(run_sweep(LoadedModel(model, card, data, config), "olft", trajectories, say=told.append))
    assert told[0] == told[1]
    assert "small" not in told[0]


def test_epochs_are_no_work_where_nothing_is_revisited(model, data, make_config):
    configs = [make_config(eval_method="sequential", opt_params="all", epochs=epochs) for epochs in (1, 100)]
    once, often = (seconds_saved(RunPreparer(model, config, data), 1, 1) for config in configs)
    assert once == often


def test_a_sweep_repeats_itself_whatever_the_global_generators_say(run, config):
    torch.manual_seed(1)
    first = run(config)
    torch.manual_seed(2)
    assert run(config) == first


def test_no_global_generator_is_touched(run, config, make_config):
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    run(config)
    run(make_config(eval_method="iid", runs=1))
    run(make_config(eval_method="zero_shot", runs=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]


def test_another_seed_meets_other_classes(run, config):
    assert run(config.model_copy(update={"seed": 2})) != run(config)


def test_progress_ends_at_one(model, data, config):
    done: list[float] = []
    card = ModelCard("anml", {}, (1, 28, 28), "ANML", "omniglot", "meta", step=1, seed=1)
    list(run_sweep(LoadedModel(model, card, data, config), "olft", sweep_trajectories(config)[:1], done.append))
    assert done == sorted(done)
    assert done[-1] == 1


@pytest.mark.parametrize("engine", ["lanes", pytest.param("native", marks=pytest.mark.native)])
def test_every_engine_gives_the_rows_of_the_plain_one(run, config, engine):
    if engine == "native" and not available("evaluate"):
        pytest.skip(available("evaluate").reason)
    plain = run(config.model_copy(update={"engine": "reference"}))
    assert run(config.model_copy(update={"engine": engine})) == plain


def shapes(trajectories: list[Trajectory], lanes: int) -> list[list[tuple[int, int, float | None]]]:
    return [[(p.shape.classes, p.run, p.lr) for p in block] for block in blocks(trajectories, lanes)]


def test_blocks_are_products_of_runs_and_rates(config):
    trajectories = sweep_trajectories(config)  # 2 sizes x 2 runs x 2 rates.
    assert [len(block) for block in blocks(trajectories, 1)] == [1] * 8
    assert [len(block) for block in blocks(trajectories, 2)] == [2] * 4
    assert [len(block) for block in blocks(trajectories, 3)] == [2] * 4
    assert [len(block) for block in blocks(trajectories, 100)] == [4, 4]
    assert [trajectory for block in blocks(trajectories, 100) for trajectory in block] == trajectories


def test_what_is_left_of_a_sweep_is_cut_into_products_as_well(config):
    left = sweep_trajectories(config)[1:]
    assert shapes(left, 100) == [
        [(3, 0, 0.01)],
        [(3, 1, 0.001), (3, 1, 0.01)],
        [(6, 0, 0.001), (6, 0, 0.01), (6, 1, 0.001), (6, 1, 0.01)],
    ]


def test_encoding_is_shared_by_runs_and_depends_on_the_class_alone(model, data, make_config):
    preparer = RunPreparer(model, make_config(), data)
    shape = Shape(6, 3, 2)
    together = preparer.make(shape, [0, 1])
    alone = RunPreparer(model, make_config(), data).make(shape, [1])[0]
    assert torch.equal(together[1].train_inputs, alone.train_inputs)
    assert 0 < len(preparer.features) <= 12


def live_bytes() -> int:
    """Count the memory of all tensors that something still refers to."""
    tensors = [value for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter)]
    tensors = [value for value in tensors if not is_functorch_wrapped_tensor(value)]  # These have no storage.
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.fixture
def only_reference_counts() -> Iterator[None]:
    """Turn the garbage collector off: it may not come by between two blocks of trajectories."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Let the nth call of a function run out of memory, with a tensor in its hands that the error's traceback keeps."""
    function, calls = getattr(owner, name), itertools.count(1)

    def short_of_memory(*arguments: Any) -> Any:
        if next(calls) == call:
            held = torch.zeros(1000)
            raise torch.OutOfMemoryError(held.numel())
        return function(*arguments)

    monkeypatch.setattr(owner, name, short_of_memory)


@pytest.mark.usefixtures("only_reference_counts")
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(RunPreparer, "_draw", 2), (RunPreparer, "_inputs", 2), (LaneLearner, "_step", 3), (learner, "predict_run", 3)],
)
def test_a_sweep_that_is_out_of_memory_anywhere_frees_the_block_and_goes_on_with_half(
    run, config, monkeypatch, owner, name, call
):
    """The card says how much is free, not how much an algorithm will ask for: it may turn out too optimistic."""
    config = config.model_copy(update={"engine": "lanes", "opt_params": ("all",)})
    expected = run(config)
    said: list[tuple[str, int]] = []
    fail_once(monkeypatch, owner, name, call)
    assert run(config, say=lambda line: said.append((line, live_bytes()))) == expected
    (_, before), (line, after) = said
    assert line == "out of memory: on with 2 trajectories at once"
    assert after == before


@pytest.mark.parametrize("engine", ["lanes", "reference"])
def test_a_sweep_of_which_not_one_trajectory_fits_ends_with_what_to_do(run, config, monkeypatch, engine):
    reason = "CUDA out of memory. Tried to allocate 2.00 MiB.\nMore of that."

    def short_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError(reason)

    kind = LaneLearner if engine == "lanes" else learner.ReferenceLearner
    monkeypatch.setattr(kind, "_step", short_of_memory)
    with pytest.raises(JobError, match=r"Tried to allocate 2.00 MiB\.\nAsk for"):
        run(config.model_copy(update={"engine": engine}))


def test_features_of_other_runs_make_room_for_a_trajectory(run, config, monkeypatch):
    config = config.model_copy(update={"engine": "reference", "classes": (3,)})
    expected = run(config)
    draw = RunPreparer._draw

    def short_of_memory(self, shape: Shape, number: int) -> Any:
        prepared = draw(self, shape, number)
        if len(self.features) > shape.classes:
            raise torch.OutOfMemoryError
        return prepared

    monkeypatch.setattr(RunPreparer, "_draw", short_of_memory)
    assert run(config) == expected
