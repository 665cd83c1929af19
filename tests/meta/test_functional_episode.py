"""The program behind `compiled` and lanes against `higher`: every model, every kind of episode, in float64."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from anml.meta.lanes import LanesEngine
from anml.meta.plain_layers import (
    MatrixConvolution,
    PlainInstanceNorm,
    PlainMaxPool,
    matrix_convolution,
    not_for_lanes,
    plain_pool,
)
from torch import nn

from anml.data.episodes import Episode
from anml.meta import functional_episode as program_module
from anml.meta.engine import CheckedEpisodes, EpisodeOutcome, ReferenceEngine, gradient_errors, mistake
from anml.meta.fast import FastEngine
from anml.meta.functional_episode import (
    CompiledEngine,
    FunctionalEpisode,
    missing_compiler,
    run_lanes,
    run_one,
    unsupported,
)
from anml.models.meta_model import MetaModel, select_names
from tests.meta.cases import INNER_LR, MODELS, PUBLISHED_INNER, assert_agree, make_data, make_episode, make_model

DATA = make_data()
# Torch warns of its own ways, and means to hide it, which a test that makes errors of warnings undoes.
while_compiling = pytest.mark.filterwarnings("ignore")
SEEDS = (1, 2)
RATES = (INNER_LR, INNER_LR / 3)
ALL_INNER = {kind: PUBLISHED_INNER.get(kind, ("all",)) for kind in MODELS}
EPISODES = [
    pytest.param({"batch_size": batch, "train_cycles": cycles, "remember_only": only}, id=f"{batch}x{cycles}{tail}")
    for batch in (1, 5)
    for cycles in (1, 2)
    for only, tail in ((False, ""), (True, " remember"))
]


def models_of(kind: str) -> list[MetaModel]:
    return [make_model(kind, seed) for seed in SEEDS]


def episodes_of(changes: dict[str, Any]) -> list[Episode]:
    """Return an episode for every model."""
    return [make_episode(DATA, index, **changes) for index in range(len(SEEDS))]


@functools.cache
def reference(kind: str, inner: tuple[str, ...], changes: tuple[tuple[str, Any], ...]) -> list[EpisodeOutcome]:
    """Return what `higher` makes of the models' episodes, once for all tests."""
    models, episodes = models_of(kind), episodes_of(dict(changes))
    names = select_names(models[0], inner)
    return [ReferenceEngine(m, names, r).run(e) for m, r, e in zip(models, RATES, episodes, strict=True)]


def assert_program_is_exact(kind: str, inner: tuple[str, ...], changes: dict[str, Any]) -> None:
    model, episode = models_of(kind)[0], episodes_of(changes)[0]
    program = FunctionalEpisode(model, select_names(model, inner), INNER_LR)
    assert_agree(run_one(program, model, episode), reference(kind, inner, tuple(changes.items()))[0], model)


def assert_lanes_are_exact(kind: str, inner: tuple[str, ...], changes: dict[str, Any], matrices: bool) -> None:
    models = models_of(kind)
    program = FunctionalEpisode(models[0], select_names(models[0], inner), RATES, lanes=True, matrices=matrices)
    outcomes = run_lanes(program, models, episodes_of(changes))
    expected = reference(kind, inner, tuple(changes.items()))
    for model, found, wanted in zip(models, outcomes, expected, strict=True):
        assert_agree(found, wanted, model)


@pytest.mark.parametrize("changes", EPISODES)
@pytest.mark.parametrize("kind", MODELS)
def test_program_agrees_with_higher(kind: str, changes: dict[str, Any]) -> None:
    assert_program_is_exact(kind, ALL_INNER[kind], changes)


@pytest.mark.parametrize("changes", [EPISODES[0], EPISODES[-1]])
@pytest.mark.parametrize("kind", MODELS)
def test_lanes_agree_with_higher(kind: str, changes: dict[str, Any]) -> None:
    assert_lanes_are_exact(kind, ALL_INNER[kind], changes, matrices=False)


@pytest.mark.parametrize("kind", ["anml", "oml", "convnet, mlp"])
def test_lanes_of_matrix_products_agree_with_higher(kind: str) -> None:
    changes = {"batch_size": 1, "train_cycles": 1, "remember_only": False}
    assert_lanes_are_exact(kind, ALL_INNER[kind], changes, matrices=True)


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
    assert_lanes_are_exact(kind, inner, {}, matrices=False)


def second_order(layer: nn.Module, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return a layer's output, its gradients, and theirs."""
    direction = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    output = layer(x)
    first = torch.autograd.grad((output.sin() * direction).sum(), [x, *weights], create_graph=True)
    total = torch.stack([(gradient**3).sum() for gradient in first]).sum()
    return [output, *first, *torch.autograd.grad(total, [x, *weights], allow_unused=True, materialize_grads=True)]


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], nn.Module]]] = {
    "norm": (lambda: nn.InstanceNorm2d(3, affine=True), PlainInstanceNorm),
    "norm without weights": (lambda: nn.InstanceNorm2d(3), PlainInstanceNorm),
    "pool": (lambda: nn.MaxPool2d(2), PlainMaxPool),
    "overlapping pool": (lambda: nn.MaxPool2d(3, stride=2, padding=1), PlainMaxPool),
    "convolution": (lambda: nn.Conv2d(3, 4, 3), MatrixConvolution),
    "strided": (lambda: nn.Conv2d(3, 4, (3, 2), stride=2, padding=1, dilation=(1, 2), bias=False), MatrixConvolution),
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


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    assert plain_pool(nn.MaxPool2d(2, ceil_mode=True)) is None
    assert matrix_convolution(nn.Conv2d(4, 4, 3, groups=2)) is None
    assert matrix_convolution(nn.Conv2d(4, 4, 3, padding="same")) is None


def test_says_what_it_does_not_support() -> None:
    arguments = {"num_blocks": 1, "num_filters": [3], "norm_type": "bn"}
    model = make_model("convnet, linear", extra={"encoder_args": arguments})
    assert "norm.running_mean" in unsupported(model)
    with pytest.raises(ValueError, match="running_mean"):
        CompiledEngine(model, ["classifier.linear.weight"], INNER_LR)
    with pytest.raises(ValueError, match="running_mean"):
        LanesEngine([model], ["classifier.linear.weight"], [INNER_LR])


def test_lanes_take_no_layer_that_was_not_tested() -> None:
    model = make_model("sanml")
    assert not not_for_lanes(model)
    model.add_module("extra", nn.LayerNorm(3))
    assert "extra is a LayerNorm" in not_for_lanes(model)


def test_a_quick_way_that_errs_or_fails_is_not_taken() -> None:
    model, episode = make_model("oml"), make_episode(DATA)
    engine = ReferenceEngine(model, select_names(model, ["pn"]), INNER_LR)
    expected = [engine.run(episode)]

    def wrong(_: object) -> list[EpisodeOutcome]:
        gradients = {
            name: gradient * (1.01 if name == "pn.2.weight" else 1) for name, gradient in expected[0][2].items()
        }
        return [expected[0]._replace(gradients=gradients)]

    def failing(_: object) -> list[EpisodeOutcome]:
        message = "\nno such instruction\nand more"
        raise RuntimeError(message)

    for quick, reason in ((wrong, "pn.2.weight is off by 1%"), (failing, "RuntimeError: no such instruction")):
        checked = CheckedEpisodes(quick, lambda episodes: expected)
        assert checked.run([episode]) is expected
        assert checked.run([episode]) is expected
        assert reason in checked.note


def test_a_quick_way_that_agrees_is_taken_and_checked_once() -> None:
    model, episode = make_model("oml"), make_episode(DATA)
    program = FunctionalEpisode(model, select_names(model, ["pn"]), INNER_LR)
    engine, calls = ReferenceEngine(model, select_names(model, ["pn"]), INNER_LR), []

    def plain(episodes: Any) -> list[EpisodeOutcome]:
        calls.append(episodes)
        return [engine.run(e) for e in episodes]

    checked = CheckedEpisodes(lambda episodes: [run_one(program, model, e) for e in episodes], plain)
    for _ in range(3):
        assert_agree(checked.run([episode])[0], engine.run(episode), model)
    assert len(calls) == 5  # Of the first episode, turned and mirrored.
    assert not checked.note


@pytest.mark.parametrize(("flips", "is_mistake"), [(2, False), (3, True)])
def test_a_near_tie_that_flips_in_few_episodes_is_no_mistake(flips: int, is_mistake: bool) -> None:
    model = make_model("oml")
    engine, calls = ReferenceEngine(model, select_names(model, ["pn"]), INNER_LR), []

    def flipping(episodes: Sequence[Episode]) -> list[EpisodeOutcome]:
        outcome = engine.run(episodes[0])
        calls.append(outcome)
        moved = 1.03 if len(calls) <= flips else 1.0
        return [outcome._replace(gradients={name: moved * g for name, g in outcome.gradients.items()})]

    checked = CheckedEpisodes(flipping, lambda episodes: [engine.run(episode) for episode in episodes])
    checked.run([make_episode(DATA)])
    assert bool(checked.note) == is_mistake


def striped_episode() -> Episode:
    """Return an episode of stripes, where all neighbours in a row tie under a kernel of nearly equal weights."""
    episode = make_episode(DATA)
    stripes = episode.images[..., :3].repeat(1, 1, 1, 10)[..., :28]
    return episode._replace(images=stripes.float().contiguous())


def test_lanes_are_not_blamed_for_near_ties() -> None:
    model = make_model("sanml")
    kernel = model.get_parameter("rln.convBlock1.conv.weight")
    with torch.no_grad():
        kernel.copy_(0.3 + 1e-7 * torch.randn(kernel.shape, generator=torch.Generator().manual_seed(0)))
    models, names, episode = [model.float()], select_names(model, ["all"]), striped_episode()
    program = FunctionalEpisode(model, names, [INNER_LR], lanes=True)
    alone = FastEngine(model, names, INNER_LR).run(episode)
    if not mistake(gradient_errors(run_lanes(program, models, [episode]), [alone]), 5e-3):
        pytest.skip("this processor rounds alike in lanes and alone")
    engine = LanesEngine(models, names, [INNER_LR])
    engine.run([episode])
    assert not engine.note


def test_lanes_that_err_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "plain_norm", lambda layer: None)
    models = [model.float() for model in models_of("sanml")]
    names, episodes = select_names(models[0], ["all"]), [e._replace(images=e.images.float()) for e in episodes_of({})]
    engine = LanesEngine(models, names, RATES)
    found = engine.run(episodes)
    assert "a mistake of this PyTorch" in engine.note
    for model, rate, episode, outcome in zip(models, RATES, episodes, found, strict=True):
        expected = FastEngine(model, names, rate).run(episode)
        assert all(torch.equal(outcome.gradients[name], g) for name, g in expected.gradients.items())


def test_without_a_compiler_the_fast_engine_runs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = make_model("oml")
    engine = CompiledEngine(model, select_names(model, ["pn"]), INNER_LR)
    assert_agree(engine.run(make_episode(DATA)), reference("oml", ("pn",), ())[0], model)
    assert "'no-such-compiler' is not installed" in engine.note


@while_compiling
@pytest.mark.parametrize("kind", ["anml", "oml", "convnet, mlp"])
def test_one_static_graph_is_made_of_every_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracing half of torch.compile, without the C++ that takes so long."""
    monkeypatch.setattr(
        program_module, "_compile", lambda f: torch.compile(f, fullgraph=True, dynamic=False, backend="eager")
    )
    model = make_model(kind)
    program = FunctionalEpisode(model, select_names(model, ALL_INNER[kind]), INNER_LR, compiled=True)
    assert_agree(run_one(program, model, make_episode(DATA)), reference(kind, ALL_INNER[kind], ())[0], model)


@while_compiling
def test_compiled_engine_agrees_with_higher() -> None:
    missing = missing_compiler(torch.device("cpu"))
    if missing:
        pytest.skip(missing)
    small = {"encoder_args": {"num_blocks": 1, "num_filters": [3]}}  # Pooling before a flattening: see plain_layers.py.
    model = make_model("convnet, mlp", extra=small)
    names = select_names(model, ["all"])
    engine = CompiledEngine(model, names, INNER_LR)
    for index in range(2):
        episode = make_episode(DATA, index, train_cycles=2)
        assert_agree(engine.run(episode), ReferenceEngine(model, names, INNER_LR).run(episode), model)
    assert not engine.note
