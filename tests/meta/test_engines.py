"""The fast engine against `higher`, in float64 to rounding error; the first-order engine against a plain loop."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from anml.config.methods import InnerOptimizer
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode, draw_episode
from anml.errors import ConfigError
from anml.meta import ENGINES, make_engine
from anml.meta.engine import Engine, EpisodeOutcome, FirstOrderEngine, ReferenceEngine, gradient_errors
from anml.meta.fast import FastEngine
from anml.meta.functional_episode import FunctionalEpisode
from anml.meta.outer_step import MetaStep
from anml.models.meta_model import MetaModel, select_names
from anml.native import available
from tests.meta.cases import (
    INNER,
    INNER_LR,
    MODELS,
    PUBLISHED_INNER,
    assert_agree,
    make_config,
    make_data,
    make_episode,
    make_model,
    without_effect,
)


@pytest.fixture(scope="module")
def data() -> ClassImages:
    return make_data()


def assert_fast_is_exact(model: MetaModel, inner: tuple[str, ...], episode: Episode) -> None:
    names = select_names(model, inner)
    expected = ReferenceEngine(model, names, INNER).run(episode)
    assert_agree(FastEngine(model, names, INNER).run(episode), expected, model)


@pytest.mark.parametrize("remember_only", [False, True], ids=["all", "remember"])
@pytest.mark.parametrize("cycles", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", PUBLISHED_INNER)
def test_published_setups_agree_with_higher(data, kind, batch, cycles, remember_only):
    episode = make_episode(data, batch_size=batch, train_cycles=cycles, remember_only=remember_only)
    assert_fast_is_exact(make_model(kind), PUBLISHED_INNER[kind], episode)


@pytest.mark.parametrize("inner", [("all",), ("head",)], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_every_model_agrees_with_higher(data, kind, inner):
    assert_fast_is_exact(make_model(kind), inner, make_episode(data, batch_size=2))


@pytest.mark.parametrize(
    ("kind", "inner"),
    [
        ("anml", ("fc.weight",)),  # Part of a layer cannot be in dual form.
        ("anml", ("nm",)),
        ("oml", ("rln.0", "pn.2")),
        ("convnet, mlp", ("encoder.block2", "classifier.mlp.2")),
        ("anml-encoder, linear", ("encoder.rln", "classifier")),
        ("convnet, cosine", ("classifier.metric.weight",)),
        ("anml-encoder, learned temperature", ("encoder.rln", "classifier")),
        ("resnet12, linear", ("encoder.stage4", "head")),
    ],
    ids=str,
)
def test_any_choice_of_inner_parameters_agrees_with_higher(data, kind, inner):
    assert_fast_is_exact(make_model(kind), inner, make_episode(data))


@pytest.mark.parametrize("kind", ["anml", "oml"])
def test_uniform_sampling_agrees_with_higher(data, kind):
    episode = make_episode(data, sample_method="uniform", batch_size=2)
    assert len(episode.new_classes) > 1
    assert_fast_is_exact(make_model(kind), PUBLISHED_INNER[kind], episode)


@pytest.mark.parametrize(
    ("engine", "kind"),
    [("fast", "oml"), ("fast", "anml"), ("sweep", "anml"), pytest.param("native", "anml", marks=pytest.mark.native)],
)
def test_several_classes_one_after_the_other_agree_with_higher(data, engine, kind):
    if engine == "native" and not available("train"):
        pytest.skip(available("train").reason)
    episode = make_episode(data, sample_method="sequential", tasks=2, batch_size=2)
    assert len(episode.new_classes) == 2
    model = make_model(kind)
    names = select_names(model, PUBLISHED_INNER[kind])
    expected = ReferenceEngine(model, names, INNER).run(episode)
    assert_agree(ENGINES[engine](model, names, INNER).run(episode), expected, model)


@pytest.mark.parametrize("inner", [("all",), ("head",)], ids=str)
@pytest.mark.parametrize("norm", ["bn", "gn", None])
def test_every_norm_agrees_with_higher(data, norm, inner):
    arguments = {"num_blocks": 2, "num_filters": [3], "norm_type": norm}
    model = make_model("convnet, linear", extra={"encoder_args": arguments})
    assert_fast_is_exact(model, inner, make_episode(data, batch_size=3))


def batch_norm_model() -> MetaModel:
    return make_model(
        "convnet, linear", extra={"encoder_args": {"num_blocks": 2, "num_filters": [3], "norm_type": "bn"}}
    )


def test_running_statistics_gather_every_batch_of_an_episode(data):
    """Those of the inner loop, seen under its fast weights, and that of the meta loss: four in all."""
    model, episode = batch_norm_model(), make_episode(data, batch_size=3)
    plain, _ = plain_first_order(model, select_names(model, ["all"]), episode)
    FastEngine(model, select_names(model, ["all"]), INNER).run(episode)
    statistics = {name: buffer for name, buffer in model.named_buffers() if "running" in name}
    assert model.get_buffer("encoder.block1.norm.num_batches_tracked") == 4
    for name, buffer in statistics.items():
        torch.testing.assert_close(buffer, plain.get_buffer(name), rtol=1e-12, atol=0)


def test_the_reference_is_refused_where_it_would_leave_running_statistics_behind(data):
    model = batch_norm_model()
    names, before = select_names(model, ["all"]), copy.deepcopy(dict(model.named_buffers()))
    ReferenceEngine(model, names, INNER).run(make_episode(data))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    with pytest.raises(ConfigError, match="running statistics of a BatchNorm"):
        make_engine(make_config(engine="reference"), model, names)


def test_biases_in_front_of_an_instance_norm_are_those_left_out():
    blocks = [f"{network}.convBlock{number}.conv.bias" for network in ("rln", "nm") for number in (1, 2, 3)]
    assert without_effect(make_model("anml")) == set(blocks)
    assert not without_effect(make_model("oml"))


@pytest.mark.parametrize("engine", [ReferenceEngine, FastEngine])
def test_an_episode_changes_no_weight(data, engine):
    model = make_model("anml")
    before = copy.deepcopy(model.state_dict())
    engine(model, select_names(model, ["rln", "fc"]), INNER).run(make_episode(data))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("remember_only", [False, True])
def test_loss_and_accuracy_are_those_after_plain_sgd(data, remember_only):
    model = make_model("anml")
    episode = make_episode(data, remember_only=remember_only)
    outcome = FastEngine(model, select_names(model, ["rln", "fc"]), INNER).run(episode)
    optimizer = torch.optim.SGD([*model.get_submodule("rln").parameters(), *model.head.parameters()], lr=INNER_LR)
    for position in range(3):
        optimizer.zero_grad()
        cross_entropy(
            model(episode.images[position : position + 1]), episode.labels[position : position + 1]
        ).backward()
        optimizer.step()
    asked = slice(3 if remember_only else 0, 8)
    logits = model(episode.images[asked])
    torch.testing.assert_close(outcome.loss, cross_entropy(logits, episode.labels[asked]).detach(), rtol=1e-12, atol=0)
    assert outcome.accuracy == (logits.argmax(dim=1) == episode.labels[asked]).double().mean()


def follow(engine: Engine, model: MetaModel, data: ClassImages, updates: int) -> list[float]:
    """Train with Adam for some episodes; return the losses. What has no effect is not trained: Adam scales up noise."""
    trained = {name: p for name, p in model.named_parameters() if name not in without_effect(model)}
    optimizer = torch.optim.Adam(trained.values(), lr=0.001)
    losses = []
    for index in range(updates):
        outcome = engine.run(make_episode(data, index))
        losses.append(outcome.loss.item())
        for name, parameter in trained.items():
            parameter.grad = outcome.gradients[name]
        optimizer.step()
    return losses


class UncompiledEngine:
    """What `compiled` compiles, as it is."""

    name, note = "uncompiled", ""

    def __init__(self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer) -> None:
        self.model, self.program = model, FunctionalEpisode(model, inner_names, inner)

    def run(self, episode: Episode) -> EpisodeOutcome:
        return self.program.run(dict(self.model.named_parameters()), episode)


@pytest.mark.parametrize("kind", PUBLISHED_INNER)
def test_fifty_updates_stay_with_higher(data, kind):
    losses, models = [], []
    for engine in (ReferenceEngine, FastEngine, UncompiledEngine):
        models.append(make_model(kind))
        inner = select_names(models[-1], PUBLISHED_INNER[kind])
        losses.append(follow(engine(models[-1], inner, INNER), models[-1], data, 50))
    for model, found_losses in zip(models[1:], losses[1:], strict=True):
        assert found_losses == pytest.approx(losses[0], rel=1e-7)
        for name, parameter in models[0].named_parameters():
            assert (model.get_parameter(name) - parameter).norm() <= 1e-7 * parameter.norm(), name


def plain_first_order(model: MetaModel, inner: list[str], episode: Episode) -> tuple[MetaModel, torch.Tensor]:
    """Return a copy with the fast weights, the gradient of the meta loss in its `.grad`, and that loss."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD([model.get_parameter(name) for name in inner], lr=INNER_LR)
    for index in episode.support_index:
        model.zero_grad()
        cross_entropy(model(episode.images[index]), episode.labels[index]).backward()
        optimizer.step()
    model.zero_grad()
    loss = cross_entropy(model(episode.images), episode.labels)
    loss.backward()
    return model, loss.detach()


@pytest.mark.parametrize("keep", [False, True], ids=["first-order", "sequential_episodic"])
def test_first_order_gradients_are_those_at_the_fast_weights(data, keep):
    model, episode = make_model("anml"), make_episode(data, batch_size=2)
    inner = select_names(model, ["rln", "fc"])
    expected, loss = plain_first_order(model, inner, episode)
    outcome = FirstOrderEngine(model, inner, INNER, keep_fast_weights=keep).run(episode)
    assert outcome.loss == loss
    assert list(outcome.gradients) == [name for name, _ in model.named_parameters()]
    for name, gradient in outcome.gradients.items():
        torch.testing.assert_close(gradient, expected.get_parameter(name).grad, rtol=1e-12, atol=1e-15)


def test_first_order_puts_the_weights_back(data):
    model = make_model("anml")
    before = copy.deepcopy(model.state_dict())
    FirstOrderEngine(model, select_names(model, ["rln", "fc"]), INNER, keep_fast_weights=False).run(make_episode(data))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sequential_episodic_keeps_the_fast_weights(data):
    model, episode = make_model("anml"), make_episode(data)
    inner = select_names(model, ["rln", "fc"])
    expected, _ = plain_first_order(model, inner, episode)
    FirstOrderEngine(model, inner, INNER, keep_fast_weights=True).run(episode)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), rtol=1e-12, atol=1e-15)


@pytest.mark.native
@pytest.mark.parametrize("keep", [False, True], ids=["first-order", "sequential_episodic"])
@pytest.mark.parametrize("kind", ["anml", "sanml", "convnet, linear", "anml-encoder, mlp"])
def test_first_order_with_native_blocks_does_what_it_does_without(data, kind, keep):
    if not available("train"):
        pytest.skip(available("train").reason)
    plain, episodes = make_model(kind), [make_episode(data, index) for index in range(2)]
    native = copy.deepcopy(plain)
    inner = select_names(plain, PUBLISHED_INNER.get(kind, ("all",)))
    engines = [FirstOrderEngine(m, inner, INNER, keep, native=m is native) for m in (plain, native)]
    assert engines[1].note == "native blocks"
    for episode in episodes:
        expected, found = (engine.run(episode) for engine in engines)
        assert_agree(found, expected, plain)
    for name, parameter in native.named_parameters():
        torch.testing.assert_close(parameter, plain.get_parameter(name), rtol=1e-10, atol=1e-12)


def test_first_order_runs_what_the_kernels_cannot_without_them(data):
    model = make_model("resnet12, linear")
    engine = FirstOrderEngine(model, select_names(model, ["all"]), INNER, keep_fast_weights=True, native=True)
    assert not engine.is_native
    assert not engine.note


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_bf16_rounds_gradients_that_stay_near_those_of_float32(data, engine):
    config, model = make_config(engine=engine, precision="bf16-mixed", model="oml"), make_model("oml").float()
    names = select_names(model, PUBLISHED_INNER["oml"])
    episode = draw_episode(data, config, seed=1, index=0)
    expected = make_engine(config, model, names)[0].run(episode)
    found = MetaStep(config, model, make_engine(config, model, names)[0], 1).run(episode)
    assert {gradient.dtype for gradient in found.gradients.values()} == {torch.float32}
    assert 1e-3 < max(gradient_errors(found, expected).values()) < 0.1


def test_engines_that_compute_in_float32_alone_leave_bf16_to_others():
    config, model = make_config(precision="bf16-mixed"), make_model("sanml")
    engine, why = make_engine(config, model, select_names(model, ["all"]))
    assert isinstance(engine, FastEngine)
    assert "not sweep: it computes in float32 alone" in why
    with pytest.raises(ConfigError, match="float32 alone"):
        make_engine(config.model_copy(update={"engine": "sweep"}), model, select_names(model, ["all"]))


@pytest.mark.native
@pytest.mark.parametrize(("engine", "is_native"), [("auto", True), ("native", True), ("fast", False)])
def test_without_second_derivatives_blocks_are_native_unless_another_engine_is_asked_for(engine, is_native):
    if not available("train"):
        pytest.skip(available("train").reason)
    config = make_config(train_method="sequential_episodic", engine=engine)
    found, _ = make_engine(config, make_model("sanml"), ["fc.weight"])
    assert isinstance(found, FirstOrderEngine)
    assert found.is_native == is_native


def test_native_blocks_asked_for_and_not_to_be_had_are_an_error():
    config, model = make_config(train_method="meta-first-order", engine="native"), make_model("resnet12, linear")
    with pytest.raises(ConfigError, match="engine: native cannot train this: it has no convolution blocks on a CPU"):
        make_engine(config, model, select_names(model, ["head"]))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, FastEngine),
        ({"engine": "fast"}, FastEngine),
        ({"engine": "reference"}, ReferenceEngine),
        ({"train_method": "meta-first-order"}, FirstOrderEngine),
        ({"train_method": "sequential_episodic"}, FirstOrderEngine),
    ],
    ids=str,
)
def test_a_config_chooses_its_engine(changes, kind):
    engine, _ = make_engine(make_config(**changes), make_model("sanml"), ["fc.weight"])
    assert type(engine) is kind
    assert getattr(engine, "keep_fast_weights", False) == (changes.get("train_method") == "sequential_episodic")
