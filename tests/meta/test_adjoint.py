"""The sweep engines against the reference: every model they support, every kind of episode, to rounding error.

`native` is left out, with its reason, where it cannot be built.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anml import native
from anml.config.methods import InnerOptimizer
from anml.data.episodes import Episode
from anml.meta.adjoint import AdjointEngine, NativeEngine
from anml.meta.engine import Engine, EpisodeOutcome, ReferenceEngine
from anml.models import build_model
from anml.models.meta_model import MetaModel, belongs_to

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
INNER = InnerOptimizer(0.1)
ENGINES = ["sweep", pytest.param("native", marks=pytest.mark.native)]
CASES = [("sweep", kind) for kind in MODELS] + [
    pytest.param("native", kind, marks=pytest.mark.native) for kind in MODELS if kind != "convnet 5x5"
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_engine(name: str, model: MetaModel, inner: list[str]) -> Engine:
    """Return an engine, or skip the test."""
    if name == "sweep":
        return AdjointEngine(model, inner, INNER)
    found = native.available("train")
    if not found:
        pytest.skip(found.reason)
    return NativeEngine(model, inner, INNER)


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
    """Say whether a parameter is a bias before an InstanceNorm: its gradient is zero, the reference's only nearly."""
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
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_gradients_are_those_of_the_reference(
    name: str, kind: str, batch: int, cycles: int, remember_only: bool
) -> None:
    model, inner = make_model(kind)
    episode = make_episode(batch, cycles, remember_only)
    engine = make_engine(name, model, inner)
    expected = ReferenceEngine(model, inner, INNER).run(episode)
    assert_agree(engine.run(episode), expected, model, 1e-9)


@pytest.mark.parametrize("kind", ["anml", "sanml"])
@pytest.mark.parametrize("name", ENGINES)
def test_fifty_updates_stay_with_the_reference(name: str, kind: str) -> None:
    first, inner = make_model(kind)
    second, _ = make_model(kind)
    engine = make_engine(name, second, inner)
    expected = follow(ReferenceEngine(first, inner, INNER), first, 50)
    for parameter, weights in follow(engine, second, 50).items():
        assert (weights - expected[parameter]).norm() <= 1e-7 * expected[parameter].norm(), parameter


@pytest.mark.parametrize("kind", ["anml", "sanml"])
@pytest.mark.parametrize("name", ENGINES)
def test_float32_is_near_float64(name: str, kind: str) -> None:
    exact, inner = make_model(kind)
    rounded, _ = make_model(kind, torch.float32)
    actual = make_engine(name, rounded, inner).run(make_episode(dtype=torch.float32))
    expected = ReferenceEngine(exact, inner, INNER).run(make_episode())
    for parameter, gradient in expected.gradients.items():
        if not is_true_zero(parameter, exact):
            error = (actual.gradients[parameter] - gradient).norm() / gradient.norm()
            assert error <= 1e-4, f"{parameter}: {error:.1e}"


@pytest.mark.native
def test_in_float32_the_native_softmax_counts_every_class() -> None:
    found = native.available("train")
    if not found:
        pytest.skip(found.reason)
    # A class that is nearly certain, as after a step of the inner loop, and 999 others of 1e-8 each.
    extra = torch.full((1, 1000), -18.0)
    extra[0, 0] = 0
    none, rows = torch.zeros(1000, 1), torch.ones(1, 1)
    _, probability, _ = native.kernels("train").attend(none, rows, extra, None)
    expected = 1 - extra.double().softmax(dim=1)[0, 0]
    assert abs(1 - probability[0, 0].double() - expected) <= 0.01 * expected


@pytest.mark.parametrize("name", ENGINES)
def test_a_dead_image_and_ties_take_the_same_subgradients(name: str) -> None:
    model, inner = make_model("anml")
    episode = make_episode()
    episode.images[1] = 0  # Every window a tie, the norm at variance zero.
    episode.images[2] = (episode.images[2] > 0.5).double()
    engine = make_engine(name, model, inner)
    expected = ReferenceEngine(model, inner, INNER).run(episode)
    assert_agree(engine.run(episode), expected, model, 1e-9)


@pytest.mark.parametrize("name", ENGINES)
def test_weights_are_left_alone(name: str) -> None:
    model, inner = make_model("anml")
    before = {n: parameter.detach().clone() for n, parameter in model.named_parameters()}
    make_engine(name, model, inner).run(make_episode())
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter, before[n])
        assert parameter.requires_grad


@pytest.mark.parametrize("name", ENGINES)
def test_not_a_number_stays_visible(name: str) -> None:
    model, inner = make_model("sanml")
    with torch.no_grad():
        model.get_parameter(inner[0])[0, 0, 0, 0] = torch.nan
    assert make_engine(name, model, inner).run(make_episode()).loss.isnan()


@pytest.mark.native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_native_with_any_number_of_threads_and_channels(threads: int) -> None:
    model = build_model("anml", {"rln_chs": 70, "nm_chs": 40, "num_classes": 5}, (3, 28, 28), seed=1).double()
    inner = [n for n, _ in model.named_parameters() if not n.startswith("nm")]
    episode = make_episode(classes=5, channels=3)
    torch.set_num_threads(threads)
    engine = make_engine("native", model, inner)
    expected = ReferenceEngine(model, inner, INNER).run(episode)
    # An episode of another size first: buffers are kept, what was in them must not matter.
    engine.run(make_episode(batch=5, classes=5, channels=3))
    assert_agree(engine.run(episode), expected, model, 1e-9)


def test_says_what_it_does_not_support() -> None:
    model, inner = make_model("anml")
    assert not AdjointEngine.unsupported(model, inner)
    assert "inner loop" in AdjointEngine.unsupported(model, inner[:-1])
    assert "inner loop" in AdjointEngine.unsupported(model, [n for n, _ in model.named_parameters()])
    oml = build_model("oml", {"num_filters": 4, "strides": [2, 2], "hidden": 8}, (1, 28, 28), seed=1)
    assert "encoder" in AdjointEngine.unsupported(oml, [n for n, _ in oml.named_parameters()])
    mlp = build_model(
        "classifier",
        {"encoder": "convnet", "encoder_args": {"num_blocks": 3}, "classifier": "mlp-classifier"},
        (1, 28, 28),
        seed=1,
    )
    assert "head" in AdjointEngine.unsupported(mlp, [n for n, _ in mlp.named_parameters()])
    for args in ({"learn_temperature": False}, {}):  # With a temperature, it has two parameters like a Linear layer.
        metric = build_model(
            "classifier",
            {"encoder": "convnet", "encoder_args": {"num_blocks": 3}, "classifier": "metric-classifier",
             "classifier_args": args},
            (1, 28, 28), seed=1,
        )  # fmt: skip
        assert "head is not one Linear layer" in AdjointEngine.unsupported(
            metric, [n for n, _ in metric.named_parameters()]
        )
    nonml = build_model("nonml", {"rln_chs": 4, "nm_chs": 3}, (1, 28, 28), seed=1)
    assert "encoder" in AdjointEngine.unsupported(
        nonml, [n for n, _ in nonml.named_parameters() if not n.startswith("nm")]
    )
    batch_norm = {"encoder": "convnet", "encoder_args": {"num_blocks": 3, "norm_type": "bn"}}
    model = build_model("classifier", batch_norm, (1, 28, 28), seed=1)
    with pytest.raises(ValueError, match="InstanceNorm"):
        AdjointEngine(model, [n for n, _ in model.named_parameters()], INNER)


def test_native_says_what_it_does_not_support() -> None:
    model, inner = make_model("convnet 5x5")
    assert "3x3" in NativeEngine.unsupported(model, inner)
    with pytest.raises(ValueError, match="3x3"):
        NativeEngine(model, inner, INNER)
    model, inner = make_model("anml")
    assert not NativeEngine.unsupported(model, inner)
    assert "float32" in NativeEngine.unsupported(model.half(), inner)


def test_native_without_a_compiler_is_unavailable_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(native, "_load", native._load.__wrapped__)
    assert not native.available("train")
    assert "no-such-compiler" in native.available("train").reason
    with pytest.raises(RuntimeError, match="no-such-compiler"):
        native.kernels("train")


def test_native_build_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(file))
    monkeypatch.setattr(native, "_load", native._load.__wrapped__)
    assert str(file) in native.available("train").reason
