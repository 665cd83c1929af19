"""The functional episode behind `compiled` against `higher`: every model, every kind of episode, in float64."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from anml.data.episodes import Episode
from anml.meta import functional_episode as program_module
from anml.meta.engine import CheckedEpisodes, EpisodeOutcome, ReferenceEngine
from anml.meta.functional_episode import (
    CompiledEngine,
    FunctionalEpisode,
    PlainMaxPool,
    skeleton,
    unsupported,
)
from anml.models.meta_model import select_names
from tests.meta.cases import INNER, MODELS, PUBLISHED_INNER, assert_agree, make_data, make_episode, make_model

DATA = make_data()
# Torch warns of its own ways, and means to hide it, which a test that makes errors of warnings undoes.
while_compiling = pytest.mark.filterwarnings("ignore")
ALL_INNER = {kind: PUBLISHED_INNER.get(kind, ("all",)) for kind in MODELS}
EPISODES = [
    pytest.param({"batch_size": batch, "train_cycles": cycles, "remember_only": only}, id=f"{batch}x{cycles}{tail}")
    for batch in (1, 5)
    for cycles in (1, 2)
    for only, tail in ((False, ""), (True, " remember"))
]


@functools.cache
def reference(kind: str, inner: tuple[str, ...], changes: tuple[tuple[str, Any], ...]) -> EpisodeOutcome:
    """Return what `higher` makes of a model's episode, once for all tests."""
    model = make_model(kind)
    return ReferenceEngine(model, select_names(model, inner), INNER).run(make_episode(DATA, **dict(changes)))


def assert_program_is_exact(kind: str, inner: tuple[str, ...], changes: dict[str, Any]) -> None:
    model, episode = make_model(kind), make_episode(DATA, **changes)
    program = FunctionalEpisode(model, select_names(model, inner), INNER)
    assert_agree(
        program.run(dict(model.named_parameters()), episode), reference(kind, inner, tuple(changes.items())), model
    )


@pytest.mark.parametrize("changes", EPISODES)
@pytest.mark.parametrize("kind", MODELS)
def test_agrees_with_higher(kind: str, changes: dict[str, Any]) -> None:
    assert_program_is_exact(kind, ALL_INNER[kind], changes)


INNER_CHOICES = [
    ("anml", ("fc.weight",)),  # Part of a layer cannot be in dual form.
    ("anml", ("nm",)),
    ("anml", ("all",)),
    ("oml", ("rln.0", "pn.2")),
    ("convnet, mlp", ("head",)),
    ("anml-encoder, linear", ("encoder.rln", "classifier")),
]


@pytest.mark.parametrize(("kind", "inner"), INNER_CHOICES, ids=str)
def test_any_choice_of_inner_parameters_agrees_with_higher(kind: str, inner: tuple[str, ...]) -> None:
    assert_program_is_exact(kind, inner, {})


def second_order(layer: nn.Module, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return a layer's output, its gradients, and theirs."""
    direction = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    output = layer(x)
    first = torch.autograd.grad((output.sin() * direction).sum(), [x, *weights], create_graph=True)
    total = torch.stack([(gradient**3).sum() for gradient in first]).sum()
    return [output, *first, *torch.autograd.grad(total, [x, *weights], allow_unused=True, materialize_grads=True)]


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], nn.Module]]] = {
    "pool": (lambda: nn.MaxPool2d(2), PlainMaxPool),
    "overlapping pool": (lambda: nn.MaxPool2d(3, stride=2, padding=1), PlainMaxPool),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_rewritten_layers_do_the_same_up_to_second_order(kind: str) -> None:
    make, rewrite = LAYERS[kind]
    layer = make().double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64).round(decimals=1).requires_grad_()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    weights = list(layer.parameters())
    for found, expected in zip(second_order(rewrite(layer), x, weights), second_order(layer, x, weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_pools_of_other_kinds_stay_as_they_are() -> None:
    model = make_model("sanml")
    model.add_module("extra", nn.MaxPool2d(2, ceil_mode=True))
    assert isinstance(skeleton(model, [], plain_pools=True).get_submodule("extra"), nn.MaxPool2d)


def test_says_what_it_does_not_support() -> None:
    arguments = {"num_blocks": 1, "num_filters": [3], "norm_type": "bn"}
    model = make_model("convnet, linear", extra={"encoder_args": arguments})
    assert "norm.running_mean" in unsupported(model)
    with pytest.raises(ValueError, match="running_mean"):
        CompiledEngine(model, ["classifier.linear.weight"], INNER)


def test_a_quick_way_that_errs_or_fails_is_not_taken() -> None:
    model, episode = make_model("oml"), make_episode(DATA)
    engine = ReferenceEngine(model, select_names(model, ["pn"]), INNER)
    expected = engine.run(episode)

    def wrong(_: object) -> EpisodeOutcome:
        factors = {"pn.2.weight": 1.01}
        return expected._replace(gradients={n: g * factors.get(n, 1) for n, g in expected.gradients.items()})

    def failing(_: object) -> EpisodeOutcome:
        message = "\nno such instruction\nand more"
        raise RuntimeError(message)

    for quick, reason in ((wrong, "pn.2.weight is off by 1%"), (failing, "RuntimeError: no such instruction")):
        checked = CheckedEpisodes(quick, lambda episode: expected)
        assert checked.run(episode) is expected
        assert checked.run(episode) is expected
        assert reason in checked.note


def test_a_quick_way_that_agrees_is_taken_and_checked_once() -> None:
    model, episode = make_model("oml"), make_episode(DATA)
    program = FunctionalEpisode(model, select_names(model, ["pn"]), INNER)
    engine, calls = ReferenceEngine(model, select_names(model, ["pn"]), INNER), []

    def plain(episode: Episode) -> EpisodeOutcome:
        calls.append(episode)
        return engine.run(episode)

    checked = CheckedEpisodes(lambda episode: program.run(dict(model.named_parameters()), episode), plain)
    for _ in range(3):
        assert_agree(checked.run(episode), engine.run(episode), model)
    assert len(calls) == 5  # Of the first episode, turned and mirrored.
    assert not checked.note


@pytest.mark.parametrize(("flips", "is_mistake"), [(2, False), (3, True)])
def test_a_near_tie_that_flips_in_few_episodes_is_no_mistake(flips: int, is_mistake: bool) -> None:
    model = make_model("oml")
    engine, calls = ReferenceEngine(model, select_names(model, ["pn"]), INNER), []

    def flipping(episode: Episode) -> EpisodeOutcome:
        outcome = engine.run(episode)
        calls.append(outcome)
        moved = 1.03 if len(calls) <= flips else 1.0
        return outcome._replace(gradients={name: moved * g for name, g in outcome.gradients.items()})

    checked = CheckedEpisodes(flipping, engine.run)
    checked.run(make_episode(DATA))
    assert bool(checked.note) == is_mistake


@while_compiling
@pytest.mark.parametrize("kind", ["anml", "oml", "convnet, mlp"])
def test_one_static_graph_is_made_of_every_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracing half of torch.compile, without the C++ that takes so long."""
    monkeypatch.setattr(
        program_module, "_compile", lambda f: torch.compile(f, fullgraph=True, dynamic=False, backend="eager")
    )
    model = make_model(kind)
    program = FunctionalEpisode(model, select_names(model, ALL_INNER[kind]), INNER, compiled=True)
    assert_agree(
        program.run(dict(model.named_parameters()), make_episode(DATA)), reference(kind, ALL_INNER[kind], ()), model
    )


@while_compiling
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: elsewhere nothing is compiled")
@pytest.mark.parametrize("kind", ["oml", "sanml"])
def test_compiled_engine_agrees_with_higher(kind: str) -> None:
    model, data = make_model(kind).cuda(), DATA.to(torch.device("cuda"))
    names = select_names(model, ALL_INNER[kind])
    engine = CompiledEngine(model, names, INNER)
    for index in range(2):
        episode = make_episode(data, index, train_cycles=2)
        assert_agree(engine.run(episode), ReferenceEngine(model, names, INNER).run(episode), model)
    assert not engine.note
