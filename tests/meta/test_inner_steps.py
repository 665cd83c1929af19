"""Momentum and learned rates in the inner loop: `higher` against plain autograd, the other engines against `higher`."""

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from anml.config.methods import InnerOptimizer
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode
from anml.errors import ConfigError
from anml.meta import make_engine
from anml.meta.engine import EpisodeOutcome, FirstOrderEngine, ReferenceEngine
from anml.meta.fast import FastEngine
from anml.meta.inner_steps import Weights, learned_rates
from anml.meta.outer_step import MetaStep
from anml.models.meta_model import MetaModel, select_names
from anml.train.loop import EpisodeUpdater
from tests.meta.cases import INNER_LR, PUBLISHED_INNER, make_config, make_data, make_episode, make_model, without_effect

INNER = {
    "momentum": InnerOptimizer(INNER_LR, momentum=0.8),
    "meta-sgd": InnerOptimizer(INNER_LR, learns_rates=True),
    "both": InnerOptimizer(INNER_LR, momentum=0.8, learns_rates=True),
}
Engines = ReferenceEngine | FastEngine | FirstOrderEngine


@pytest.fixture(scope="module")
def data() -> ClassImages:
    return make_data()


def spread(engine: Engines) -> None:
    """Let learned rates differ, one of them negative: at equal rates, a mix-up of names would not be seen."""
    with torch.no_grad():
        for position, rate in enumerate(engine.inner.rates.values()):
            rate.copy_(torch.tensor(-0.02 if position == 1 else 0.1 + 0.03 * position))


def textbook(
    model: MetaModel, names: list[str], inner: InnerOptimizer, episode: Episode, first_order: bool = False
) -> EpisodeOutcome:
    """Differentiate through v <- momentum v + gradient, w <- w - rate v, written out; first_order: through -rate v."""
    slow = dict(model.named_parameters())
    learner = ReferenceEngine(model, names, inner)
    spread(learner)
    rates = {f"inner_lr.{n}": torch.full((), inner.lr, dtype=torch.float64) for n in names} | learner.inner.rates
    fast: Weights = {name: slow[name] for name in names}
    velocity = {name: torch.zeros_like(value) for name, value in fast.items()}
    for index in episode.support_index:
        loss = cross_entropy(functional_call(model, fast, (episode.images[index],)), episode.labels[index])
        gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
        for name, gradient in zip(names, gradients, strict=True):
            velocity[name] = inner.momentum * velocity[name] + gradient
            fast[name] = fast[name] - rates[f"inner_lr.{name}"] * velocity[name]
    logits, labels = functional_call(model, fast, (episode.images,)), episode.labels
    loss, learned = cross_entropy(logits, labels), {**slow, **learner.inner.rates}
    right = (logits.argmax(dim=1) == labels).double().mean()
    gradients = torch.autograd.grad(loss, list(learned.values()))
    return EpisodeOutcome(loss, right, dict(zip(learned, gradients, strict=True)))


def assert_agree(found: EpisodeOutcome, expected: EpisodeOutcome, model: MetaModel, inner: InnerOptimizer) -> None:
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    assert list(found.gradients) == list(expected.gradients)
    assert inner.learns_rates == any(name.startswith("inner_lr.") for name in found.gradients)
    for name, gradient in expected.gradients.items():
        if name.removeprefix("inner_lr.") not in without_effect(model):
            assert gradient.norm() > 0, name
            assert (found.gradients[name] - gradient).norm() <= 1e-9 * gradient.norm(), name


@pytest.mark.parametrize("kind", ["anml", "oml"])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_the_reference_agrees_with_autograd_written_out(data, inner, kind) -> None:
    model, episode = make_model(kind), make_episode(data, batch_size=2)
    names = select_names(model, PUBLISHED_INNER[kind])
    engine = ReferenceEngine(model, names, inner)
    spread(engine)
    assert_agree(engine.run(episode), textbook(model, names, inner, episode), model, inner)


@pytest.mark.parametrize(
    ("kind", "selected"),
    [
        ("anml", ("rln", "fc")),
        ("anml", ("fc.weight",)),  # Part of a layer is not in dual form.
        ("oml", ("pn",)),
        ("sanml", ("all",)),
        ("anml-encoder, learned temperature", ("encoder.rln", "classifier")),
    ],
    ids=str,
)
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_the_fast_engine_agrees_with_the_reference(data, inner, kind, selected) -> None:
    model, episode = make_model(kind), make_episode(data, batch_size=2, train_cycles=2)
    names = select_names(model, selected)
    engines: list[Engines] = [ReferenceEngine(model, names, inner), FastEngine(model, names, inner)]
    for engine in engines:
        spread(engine)
    expected, found = (engine.run(episode) for engine in engines)
    assert_agree(found, expected, model, inner)


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_first_order_takes_the_gradients_of_the_inner_loop_for_constants(data, inner) -> None:
    model, episode = make_model("anml"), make_episode(data, batch_size=2)
    names = select_names(model, ["rln", "fc"])
    engine = FirstOrderEngine(model, names, inner, keep_fast_weights=False)
    spread(engine)
    expected = textbook(model, names, inner, episode, first_order=True)
    for _ in range(2):  # Nothing of an episode is left for the next.
        assert_agree(engine.run(episode), expected, model, inner)


@pytest.mark.parametrize("method", ["reptile", "sequential_episodic"])
def test_methods_without_a_meta_gradient_move_by_torchs_sgd_with_momentum(data, method) -> None:
    config, model, episode = make_config(train_method=method, inner_momentum=0.8), make_model("oml"), make_episode(data)
    names = select_names(model, ["pn"])
    start = {name: model.get_parameter(name).detach().clone() for name in names}
    outcome = make_engine(config, model, names)[0].run(episode)
    found = {name: model.get_parameter(name).detach().clone() for name in names}
    if method == "reptile":
        assert all(torch.equal(found[name], start[name]) for name in names)
        found = {name: start[name] - outcome.gradients[name] for name in names}
    plain = make_model("oml")
    learner = torch.optim.SGD([plain.get_parameter(name) for name in names], lr=INNER_LR, momentum=0.8)
    for rows in [*episode.support_index, *([slice(None)] if method == "reptile" else [])]:
        learner.zero_grad()
        cross_entropy(plain(episode.images[rows]), episode.labels[rows]).backward()
        learner.step()
    for name in names:
        torch.testing.assert_close(found[name], plain.get_parameter(name).detach(), rtol=1e-10, atol=1e-12)


def test_rates_are_updated_by_adam_with_the_model(data) -> None:
    config, model = make_config(inner_optimizer="meta-sgd", outer_lr=0.01), make_model("sanml")
    engine = make_engine(config, model, select_names(model, ["all"]))[0]
    outcome = MetaStep(config, model, engine, seed=1).update(make_episode(data), 0)
    for name, rate in learned_rates(engine).items():
        if name.removeprefix("inner_lr.") not in without_effect(model):  # Adam's first step has the length of its rate.
            expected = INNER_LR - 0.01 * outcome.gradients[name].sign()
            torch.testing.assert_close(rate.detach(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("changes", [{"inner_momentum": 0.9}, {"inner_optimizer": "meta-sgd"}], ids=str)
def test_engines_of_plain_steps_leave_these_to_the_fast_engine(changes) -> None:
    model = make_model("sanml")
    engine, why = make_engine(make_config(**changes), model, select_names(model, ["all"]))
    assert isinstance(engine, FastEngine)
    assert "not sweep: it takes plain SGD steps alone" in why
    with pytest.raises(ConfigError, match="engine: sweep cannot train this: it takes plain SGD steps alone"):
        make_engine(make_config(engine="sweep", **changes), model, select_names(model, ["all"]))


def test_an_update_as_a_graph_holds_it_moves_rates_as_an_ordinary_one(data) -> None:
    config = make_config(inner_optimizer="meta-sgd", inner_momentum=0.8, engine="fast", model="oml")
    plain, captured = (EpisodeUpdater(config, make_model("oml").float(), data) for _ in range(2))
    update = captured.static_update()
    for index in range(3):
        plain.step(index)
        update.fill(index)
        update.update()
    assert all(torch.equal(captured.rates[name], rate) for name, rate in plain.rates.items())
    assert len({float(rate.detach()) for rate in plain.rates.values()}) > 1
