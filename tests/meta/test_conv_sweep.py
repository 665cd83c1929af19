"""The sweep engine against the reference: every model it supports, every kind of episode, to rounding error."""

import pytest
import torch

from anml.data.episodes import Episode
from anml.meta.conv_sweep import SweepEngine, unsupported
from anml.meta.engine import Engine, EpisodeOutcome
from anml.meta.reference import ReferenceEngine
from anml.models.build import build_model
from anml.models.meta_model import MetaModel
from anml.models.parameters import belongs_to

MODELS = {
    "anml": ("anml", {"rln_chs": 6, "nm_chs": 4}),
    "anml pooled": ("anml", {"rln_chs": 6, "nm_chs": 4, "pool_rln_output": True, "pool_nm_output": True}),
    "sanml": ("sanml", {"rln_chs": 5}),
    "sanml pooled": ("sanml", {"rln_chs": 5, "pool_rln_output": True}),
    "classifier": ("classifier", {"encoder": "anml-encoder", "encoder_args": {"rln_chs": 4, "nm_chs": 3}}),
    "convnet": ("classifier", {"encoder": "convnet", "encoder_args": {"num_blocks": 3, "num_filters": 5}}),
    "convnet 5x5": (
        "classifier",
        {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": 5, "kernel_size": 5, "stride": [2, 1]}},
    ),
}
LEARNING_RATE = 0.1


def make_model(kind: str, dtype: torch.dtype = torch.float64) -> tuple[MetaModel, list[str]]:
    """Return a small model of 11 classes and the parameters that its inner loop moves."""
    name, args = MODELS[kind]
    args = {**args, "classifier_args": {"num_classes": 11}} if name == "classifier" else {**args, "num_classes": 11}
    model = build_model(name, args, (1, 28, 28), seed=1).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # Norms away from one and zero, or half of the formulas would go untested.
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return model, [n for n, _ in model.named_parameters() if not belongs_to(n, model.gate_prefix)]


def make_episode(
    batch: int = 1,
    cycles: int = 1,
    remember_only: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    classes: int = 11,
    channels: int = 1,
) -> Episode:
    """Return an episode of three steps of one class, and four other images."""
    generator = torch.Generator().manual_seed(seed)
    count = 3 * batch
    images = torch.rand(count + 4, channels, 28, 28, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.cat([torch.full((count,), 2), torch.randint(classes, (4,), generator=generator)])
    index = torch.arange(count).unflatten(0, (-1, batch)).repeat(cycles, 1)
    return Episode(images, labels, index, count if remember_only else 0, (2,))


def is_true_zero(name: str, model: MetaModel) -> bool:
    """Say whether a parameter is a bias in front of an InstanceNorm, whose gradient the reference only rounds to zero."""
    return name.endswith("conv.bias")


def assert_agree(actual: EpisodeOutcome, expected: EpisodeOutcome, model: MetaModel, tolerance: float) -> None:
    """Compare loss, accuracy and every gradient by its relative norm."""
    assert torch.isclose(actual.loss, expected.loss, rtol=tolerance, atol=0)
    assert actual.accuracy == expected.accuracy
    assert list(actual.gradients) == list(expected.gradients)
    for name, gradient in expected.gradients.items():
        found = actual.gradients[name]
        if is_true_zero(name, model) and (name.count("nm") == 0):
            assert not found.any()
        elif not is_true_zero(name, model):
            error = (found - gradient).norm() / gradient.norm()
            assert error <= tolerance, f"{name}: {error:.1e}"


def follow(engine: Engine, model: MetaModel, updates: int) -> dict[str, torch.Tensor]:
    """Return the weights after a number of Adam updates, an episode each; true zeros are not given to Adam."""
    trained = {n: p for n, p in model.named_parameters() if not is_true_zero(n, model)}
    optimizer = torch.optim.Adam(trained.values(), lr=0.001)
    for index in range(updates):
        gradients = engine.run(make_episode(seed=index)).gradients
        for name, parameter in trained.items():
            parameter.grad = gradients[name]
        optimizer.step()
    return {name: parameter.detach() for name, parameter in trained.items()}


@pytest.mark.parametrize("remember_only", [False, True], ids=["all", "remember"])
@pytest.mark.parametrize("cycles", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_those_of_the_reference(kind: str, batch: int, cycles: int, remember_only: bool) -> None:
    model, inner = make_model(kind)
    episode = make_episode(batch, cycles, remember_only)
    expected = ReferenceEngine(model, inner, LEARNING_RATE).run(episode)
    assert_agree(SweepEngine(model, inner, LEARNING_RATE).run(episode), expected, model, 1e-9)


@pytest.mark.parametrize("kind", ["anml", "sanml"])
def test_fifty_updates_stay_with_the_reference(kind: str) -> None:
    first, inner = make_model(kind)
    second, _ = make_model(kind)
    expected = follow(ReferenceEngine(first, inner, LEARNING_RATE), first, 50)
    actual = follow(SweepEngine(second, inner, LEARNING_RATE), second, 50)
    for name, weights in expected.items():
        assert (actual[name] - weights).norm() <= 1e-7 * weights.norm(), name


@pytest.mark.parametrize("kind", ["anml", "sanml"])
def test_float32_is_near_float64(kind: str) -> None:
    exact, inner = make_model(kind)
    rounded, _ = make_model(kind, torch.float32)
    expected = ReferenceEngine(exact, inner, LEARNING_RATE).run(make_episode())
    actual = SweepEngine(rounded, inner, LEARNING_RATE).run(make_episode(dtype=torch.float32))
    for name, gradient in expected.gradients.items():
        if not is_true_zero(name, exact):
            assert (actual.gradients[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_a_dead_image_and_ties_take_the_same_subgradients() -> None:
    model, inner = make_model("anml")
    episode = make_episode()
    episode.images[1] = 0  # Every window a tie, the norm at variance zero.
    episode.images[2] = (episode.images[2] > 0.5).double()
    expected = ReferenceEngine(model, inner, LEARNING_RATE).run(episode)
    assert_agree(SweepEngine(model, inner, LEARNING_RATE).run(episode), expected, model, 1e-9)


def test_weights_are_left_alone() -> None:
    model, inner = make_model("anml")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    SweepEngine(model, inner, LEARNING_RATE).run(make_episode())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad


def test_says_what_it_does_not_support() -> None:
    model, inner = make_model("anml")
    assert not unsupported(model, inner)
    assert "inner loop" in unsupported(model, inner[:-1])
    assert "inner loop" in unsupported(model, [n for n, _ in model.named_parameters()])
    oml = build_model("oml", {"num_filters": 4, "strides": [2, 2], "hidden": 8}, (1, 28, 28), seed=1)
    assert "encoder" in unsupported(oml, [n for n, _ in oml.named_parameters()])
    mlp = build_model(
        "classifier",
        {"encoder": "convnet", "encoder_args": {"num_blocks": 3}, "classifier": "mlp-classifier"},
        (1, 28, 28),
        seed=1,
    )
    assert "head" in unsupported(mlp, [n for n, _ in mlp.named_parameters()])
    batch_norm = {"encoder": "convnet", "encoder_args": {"num_blocks": 3, "norm_type": "bn"}}
    model = build_model("classifier", batch_norm, (1, 28, 28), seed=1)
    with pytest.raises(ValueError, match="InstanceNorm"):
        SweepEngine(model, [n for n, _ in model.named_parameters()], LEARNING_RATE)
