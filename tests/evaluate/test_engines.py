"""Every evaluation engine against the plain one, in float64: the same weights after as many steps."""

import copy
import gc
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.errors import ConfigError
from anml.evaluate.learner import LaneLearner, ReferenceLearner, bytes_per_lane, bytes_shared
from anml.evaluate.native import NativeBatchLearner, NativeHeadLearner, native_learner
from anml.evaluate.prepared_run import PreparedRun, RunPreparer, Shape, classify, predict
from anml.evaluate.product_conv import ProductConv2d, use_products
from anml.evaluate.protocols import class_scores, learn_in_sequence, learn_shuffled
from anml.evaluate.sweep import choose_engine
from anml.machine import set_determinism
from anml.models import build_model
from anml.models.meta_model import MetaModel
from anml.native import Availability, available
from anml.native.blocks import NativeStack, use_native_blocks
from tests.evaluate.runs import ignore

SHAPE = Shape(classes=12, train_examples=10, test_examples=5)
MODELS = {
    "anml": ("anml", {"rln_chs": 4, "nm_chs": 3, "num_classes": 40}),
    "sanml": ("sanml", {"rln_chs": 5, "num_classes": 33}),
    "oml": ("oml", {"num_filters": 4, "strides": [2, 1, 2], "hidden": 9, "num_classes": 30}),
    "mlp": (
        "classifier",
        {
            "encoder": "convnet",
            "encoder_args": {"num_blocks": 2, "num_filters": [3]},
            "classifier": "mlp-classifier",
            "classifier_args": {"num_classes": 20, "hidden_layers": [7]},
        },
    ),
}
PARTS = [("anml", "head"), ("anml", "all"), ("anml", "rln"), ("oml", "head"), ("oml", "pn"), ("oml", "all")]
PARTS += [("mlp", "classifier"), ("mlp", "all"), ("sanml", "fc.weight")]
TOLERANCE = {"head": (300, 1e-12)}  # Everything else: 100 steps, 1e-9.


def needs_kernels() -> None:
    for extension in ("evaluate", "train"):
        if not available(extension):
            pytest.skip(available(extension).reason)


def make_runs(
    kind: str, config: EvalConfig, data, runs: Sequence[int] = (0,), dtype=torch.float64
) -> list[PreparedRun]:
    name, args = MODELS[kind]
    return RunPreparer(build_model(name, args, (1, 28, 28), seed=1), config, data, dtype).make(SHAPE, runs)


def learn(learner, steps: int) -> None:
    """Learn one example at a time, from the start again when they are used up."""
    for first in range(0, steps, 20):
        learner.learn_each(first % 120, first % 120 + 20)


def assert_same(model: MetaModel, expected: MetaModel, tolerance: float) -> None:
    for name, parameter in expected.named_parameters():
        if name.endswith("conv.bias"):
            continue  # In front of an InstanceNorm: the gradient is rounding noise, which Adam scales up.
        assert (model.get_parameter(name) - parameter).abs().max() <= tolerance, name


@pytest.mark.native
@pytest.mark.parametrize(("kind", "params"), PARTS)
def test_native_learning_equals_the_plain_one(data, make_config, kind, params):
    needs_kernels()
    [prepared] = make_runs(kind, make_config(opt_params=params), data)
    steps, tolerance = TOLERANCE.get(params, (100, 1e-9))
    fast, plain = native_learner(prepared, 0.001), ReferenceLearner(prepared, 0.001)
    assert isinstance(fast, NativeHeadLearner) == (params == "head")
    learn(fast, steps)
    learn(plain, steps)
    assert_same(fast.model, plain.model, tolerance)


@pytest.mark.parametrize("engine", ["reference", "lanes", pytest.param("native", marks=pytest.mark.native)])
@pytest.mark.parametrize("params", ["head", "all"])
def test_every_engine_learns_with_the_betas_of_the_config(data, make_config, engine, params):
    if engine == "native":
        needs_kernels()
    config = make_config(engine=engine, opt_params=params, reinit_method="zero", adam_betas=[0.0, 0.99])
    name, args = MODELS["anml"]
    preparer = RunPreparer(build_model(name, args, (1, 28, 28), seed=1), config, data, torch.float64)
    [prepared] = preparer.make(SHAPE, [0])
    learner = choose_engine(preparer, 1, 1).make([prepared], [0.001])
    model = copy.deepcopy(prepared.model)
    learned = [model.get_parameter(name).requires_grad_(True) for name in prepared.trained_names]
    adam = torch.optim.Adam(learned, lr=0.001, betas=(0.0, 0.99))
    for step in range(60):
        inputs, labels = prepared.train_inputs[step : step + 1], prepared.train_labels[step : step + 1]
        loss = cross_entropy(classify(model, inputs, prepared.stage), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    learner.learn_each(0, 60)
    [(found, _)] = learner.logits()
    torch.testing.assert_close(found, predict(model, prepared.train_inputs, prepared.stage), rtol=0, atol=1e-6)


@pytest.mark.native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_native_learning_with_any_number_of_threads(data, make_config, threads):
    needs_kernels()
    name, args = "sanml", {"rln_chs": 2, "num_classes": 70}
    preparer = RunPreparer(build_model(name, args, (1, 28, 28), seed=1), make_config(), data, torch.float64)
    [prepared] = preparer.make(SHAPE, [0])
    fast, plain = native_learner(prepared, 0.01), ReferenceLearner(prepared, 0.01)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        learn(fast, 100)
    finally:
        torch.set_num_threads(before)
    learn(plain, 100)
    assert_same(fast.model, plain.model, 1e-12)


@pytest.mark.native
@pytest.mark.parametrize("lr", [0.0001, 0.001])
def test_native_float32_predicts_what_the_plain_one_predicts(data, make_config, lr):
    needs_kernels()
    [prepared] = make_runs("anml", make_config(), data, dtype=torch.float32)
    fast, plain = native_learner(prepared, lr), ReferenceLearner(prepared, lr)
    learn(fast, 9000)
    learn(plain, 9000)
    [found], [expected] = (list(learner.logits()) for learner in (fast, plain))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.argmax(1) != theirs.argmax(1)).double().mean() <= 0.001


@pytest.mark.native
def test_a_head_that_diverges_is_not_a_head_that_is_right(data, make_config):
    needs_kernels()
    [prepared] = make_runs("anml", make_config(), data, dtype=torch.float32)
    prepared.train_inputs[5] = float("inf")
    fast = native_learner(prepared, 0.01)
    fast.learn_each(0, 120)
    [(train, _)] = fast.logits()
    assert train.isnan().any(dim=1).all()
    assert class_scores(train, prepared.train_labels, 12).top1.eq(0).all()


@pytest.mark.parametrize(("kind", "params"), PARTS)
def test_lanes_equal_their_single_runs(data, make_config, kind, params):
    prepared_runs = make_runs(kind, make_config(opt_params=params), data, runs=[0, 3])
    lrs = [0.001, 0.003]
    steps, tolerance = TOLERANCE.get(params, (100, 1e-9))
    lanes = LaneLearner(prepared_runs, lrs)
    learn(lanes, steps)
    found = list(lanes.logits())
    assert len(found) == 4
    for run, prepared in enumerate(prepared_runs):
        for number, lr in enumerate(lrs):
            plain = ReferenceLearner(prepared, lr)
            learn(plain, steps)
            [expected] = plain.logits()
            for ours, theirs in zip(found[run * 2 + number], expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * 1000)
            for name in prepared.trained_names:
                if not name.endswith("conv.bias"):
                    ours, theirs = lanes.weights[name][number, run], plain.model.get_parameter(name)
                    assert (ours - theirs).abs().max() <= tolerance, name


def test_lanes_learn_images_of_84_pixels(make_config):
    images = torch.randint(256, (3, 4, 3, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = build_model("sanml", {"rln_chs": 3, "num_classes": 5}, (3, 84, 84), seed=1)
    config = make_config(opt_params="all")
    preparer = RunPreparer(model, config, ClassImages(images, "noise"), torch.float64)
    [prepared] = preparer.make(Shape(3, 2, 2), [0])
    lanes, plain = LaneLearner([prepared], [0.001]), ReferenceLearner(prepared, 0.001)
    for learner in (lanes, plain):
        learner.learn_each(0, 6)
    torch.testing.assert_close(next(lanes.logits()), next(plain.logits()), rtol=0, atol=1e-8)


@pytest.mark.parametrize("params", ["all", "pn"])
def test_the_step_that_a_graph_replays_is_the_plain_one_to_the_bit(data, make_config, params):
    prepared_runs = make_runs("oml", make_config(opt_params=params), data, runs=[0, 3])
    replayed, plain = (LaneLearner(prepared_runs, [0.001, 0.003]) for _ in range(2))
    for first in (0, 5, 30):
        replayed.learn_each(first, first + 5)
        for step in range(first, first + 5):
            plain.learn_batch([torch.tensor([step])] * 2)
    for name, weight in plain.weights.items():
        assert torch.equal(replayed.weights[name], weight), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: graphs are not captured here")
@pytest.mark.parametrize("params", ["all", "pn"])
def test_replayed_steps_are_the_plain_ones_to_the_bit(data, make_config, params):
    set_determinism(True)
    name, args = MODELS["oml"]
    model = build_model(name, args, (1, 28, 28), seed=1).cuda()
    preparer = RunPreparer(model, make_config(opt_params=params), data.to(torch.device("cuda")))
    prepared_runs = preparer.make(SHAPE, [0, 3])
    replayed, plain = (LaneLearner(prepared_runs, [0.001, 0.003]) for _ in range(2))
    replayed.learn_each(0, 20)
    for step in range(20):
        plain.learn_batch([torch.tensor([step])] * 2)
    assert replayed.replay.graph
    for name, weight in plain.weights.items():
        assert torch.equal(replayed.weights[name], weight), name


@pytest.mark.parametrize("most_bytes", [1, 2**28])
def test_convolutions_as_products_are_convolutions(monkeypatch, most_bytes):
    monkeypatch.setattr("anml.evaluate.product_conv._MOST_BYTES", most_bytes)
    layers: list[dict[str, Any]] = [
        {"kernel_size": 3}, {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
        {"kernel_size": (1, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 3, "groups": 3}, {"kernel_size": 3, "padding": "same"}, {"kernel_size": 2, "dilation": 2},
    ]  # fmt: skip
    images = torch.randn(4, 3, 9, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for number, arguments in enumerate(layers):
        plain: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 6, **arguments)).double()
        products: Any = use_products(plain)
        assert isinstance(products[0], ProductConv2d) == (number < 3)
        pairs = [(model(images), model) for model in (products, plain)]
        found, expected = ([out, *torch.autograd.grad(out.sin().sum(), [*m.parameters()])] for out, m in pairs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_lanes_keep_what_is_re_drawn_but_does_not_learn(data, make_config):
    config = make_config(reinit_params="all", opt_params="head")
    prepared_runs = make_runs("sanml", config, data, runs=[0, 1]) + make_runs("sanml", config, data, runs=[2])
    assert not torch.equal(prepared_runs[0].train_inputs, prepared_runs[1].train_inputs)
    config = make_config(reinit_params=["rln", "fc"], opt_params=["fc", "rln.convBlock1"])
    prepared_runs = make_runs("sanml", config, data, runs=[0, 1])
    lanes, plain = LaneLearner(prepared_runs, [0.001]), ReferenceLearner(prepared_runs[1], 0.001)
    learn(lanes, 20)
    learn(plain, 20)
    torch.testing.assert_close(list(lanes.logits())[1], next(plain.logits()))


def test_lanes_keep_the_solved_head_of_each_run(data, make_config):
    config = make_config(reinit_method="lstsq", reinit_params="nm", opt_params="rln")
    prepared_runs = make_runs("anml", config, data, runs=[0, 1])
    lanes, plain = LaneLearner(prepared_runs, [0.001]), ReferenceLearner(prepared_runs[1], 0.001)
    torch.testing.assert_close(list(lanes.logits())[1], next(plain.logits()))


def assert_scores_as_alone(protocol, prepared_runs: Sequence[PreparedRun], config: EvalConfig) -> None:
    together = list(protocol(LaneLearner(prepared_runs, [0.01, 0.003]), prepared_runs, config, ignore))
    learners = [(ReferenceLearner(run, lr), [run]) for run in prepared_runs for lr in (0.01, 0.003)]
    alone = [protocol(learner, runs, config, ignore) for learner, runs in learners]
    assert len(together) > 1
    for scoring, expected in zip(together, zip(*alone, strict=True), strict=True):
        assert [score.test.top1.tolist() for score in scoring] == [score.test.top1.tolist() for [score] in expected]


def test_lanes_score_a_shuffled_sweep_as_single_runs_do(data, make_config):
    config = make_config(eval_method="iid", batch_size=32, epochs=2, opt_params="all")
    prepared_runs = make_runs("anml", config, data, runs=[0, 1])
    assert_scores_as_alone(learn_shuffled, prepared_runs, config)


def test_lanes_score_a_sequence_as_single_runs_do(data, make_config):
    config = make_config(eval_freq=5)
    prepared_runs = make_runs("anml", config, data, runs=[0, 1])
    assert_scores_as_alone(learn_in_sequence, prepared_runs, config)


def test_the_memory_of_lanes_goes_with_their_learner(data, make_config):
    prepared_runs = make_runs("anml", make_config(opt_params="all"), data, runs=[0, 1])
    gc.collect()
    gc.disable()  # Only reference counts free memory now, as between two blocks of trajectories.
    try:
        learner = LaneLearner(prepared_runs, [0.01, 0.003])
        learner.learn_each(0, 2)
        alive = weakref.ref(learner), weakref.ref(learner.inputs), *map(weakref.ref, learner.weights.values())
        del learner
        assert [reference() for reference in alive] == [None] * len(alive)
    finally:
        gc.enable()


def make_preparer(config: EvalConfig, data) -> RunPreparer:
    name, args = MODELS["anml"]
    return RunPreparer(build_model(name, args, (1, 28, 28), seed=1), config, data)


def test_a_lane_that_learns_from_images_has_room_for_the_activations_of_its_batch(data, make_config):
    block1, block2, block3 = 3 * 4 * 26**2 + 4 * 13**2, 3 * 4 * 11**2 + 4 * 5**2, 4 * 4 * 3**2
    outputs = block1 + block2 + block3 + 36 + 40  # Flattened features, logits.
    model = build_model("sanml", {"rln_chs": 4, "num_classes": 40}, (1, 28, 28), seed=1)
    weights = sum(parameter.numel() for parameter in model.parameters())
    config = make_config(eval_method="iid", batch_size=64, opt_params="all", lr=[0.1, 0.01])
    run = (12 * (10 + 10 + 5) * 28**2 + weights) // 2
    assert bytes_per_lane(RunPreparer(model, config, data)) == 4 * (4 * weights + 3 * 64 * outputs + run)
    outputs += 9 * (26**2 + 4 * 11**2 + 4 * 3**2)  # Columns: one example at a time is learned by products.
    config = make_config(opt_params="all", lr=[0.1, 0.01])
    assert bytes_per_lane(RunPreparer(model, config, data)) == 4 * (4 * weights + 3 * outputs + run)


def test_a_lane_that_learns_a_head_takes_its_weights_and_features(data, make_config):
    model = build_model("sanml", {"rln_chs": 4, "num_classes": 40}, (1, 28, 28), seed=1)
    weights = sum(parameter.numel() for parameter in model.parameters())
    expected = 4 * (4 * 37 * 40 + 3 * 40 + 12 * (10 + 10 + 5) * 36 + weights)
    preparer = RunPreparer(model, make_config(), data)
    assert bytes_per_lane(preparer) == expected
    preparer.make(Shape(12, 10, 5), [0])
    assert bytes_shared(preparer) == sum(features.nbytes for features in preparer.features.values())


@pytest.mark.native
@pytest.mark.parametrize("changes", [{}, {"opt_params": "all"}, {"eval_method": "iid"}, {"eval_method": "zero_shot"}])
def test_a_large_sweep_on_a_cpu_is_native_and_a_small_one_spares_the_compiler(data, make_config, changes):
    needs_kernels()
    config = make_config(**changes)
    assert choose_engine(make_preparer(config, data), runs=1, trajectories=1).name == "reference"
    assert choose_engine(make_preparer(config, data), runs=10**8, trajectories=10**8).name == "native"


@pytest.mark.parametrize(
    ("changes", "trajectories", "expected"),
    [
        ({}, 4, "reference"),
        ({}, 5, "lanes"),
        ({"engine": "lanes"}, 1, "lanes"),
        ({"eval_method": "zero_shot"}, 1, "lanes"),
    ],
)
def test_a_gpu_takes_lanes_where_they_pay(data, make_config, monkeypatch, changes, trajectories, expected):
    monkeypatch.setattr("anml.evaluate.sweep.lanes_that_fit", lambda preparer: 100)
    preparer = make_preparer(make_config(**changes), data)
    on_gpu: Any = SimpleNamespace(images=SimpleNamespace(device=torch.device("cuda")))
    preparer.data = on_gpu
    engine = choose_engine(preparer, 1, trajectories)
    assert engine.name == expected
    is_head = expected == "lanes" and "eval_method" not in changes
    assert ("Triton" in engine.why) == is_head  # Whether it can build a kernel here, or why not.


@pytest.mark.parametrize("engine", ["reference", "lanes"])
def test_an_engine_asked_for_is_taken(data, make_config, engine):
    config = make_config(engine=engine)
    assert choose_engine(make_preparer(config, data), 1, 1).name == engine


def test_an_engine_asked_for_in_vain_is_refused_with_the_reason(data, make_config, monkeypatch):
    reason = "no compiler"
    monkeypatch.setattr("anml.evaluate.native.available", lambda extension: Availability(False, reason))
    config = make_config(engine="native")
    with pytest.raises(ConfigError, match=reason):
        choose_engine(make_preparer(config, data), 1, 1)
    assert reason in choose_engine(make_preparer(make_config(), data), 10**8, 10**8).why


@pytest.mark.native
def test_native_learning_in_batches_equals_the_plain_one(data, make_config):
    needs_kernels()
    config = make_config(eval_method="iid", batch_size=32, epochs=3, opt_params="all")
    [prepared] = make_runs("anml", config, data)
    fast, plain = NativeBatchLearner(prepared, 0.001), ReferenceLearner(prepared, 0.001)
    assert isinstance(fast.model.rln, NativeStack)
    for learner in (fast, plain):
        list(learn_shuffled(learner, [prepared], config, ignore))
    assert_same(fast.model, plain.model, 1e-9)


@pytest.mark.native
def test_native_features_are_those_of_the_plain_encoder(data, make_config):
    needs_kernels()
    plain, fast = (make_preparer(make_config(), data) for _ in range(2))
    assert fast.encoder is not None
    use_native_blocks(fast.encoder)
    for ours, theirs in zip(fast.make(SHAPE, [0]), plain.make(SHAPE, [0]), strict=True):
        torch.testing.assert_close(ours.train_inputs, theirs.train_inputs)
