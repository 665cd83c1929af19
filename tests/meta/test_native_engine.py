"""The native engine against the reference, as test_conv_sweep.py; left out where it cannot be built."""

import pytest
import torch

from anml.meta import native
from anml.meta.native.engine import NativeEngine, unsupported
from anml.meta.reference import ReferenceEngine
from anml.models.build import build_model
from tests.meta.test_conv_sweep import (
    LEARNING_RATE,
    MODELS,
    assert_agree,
    follow,
    is_true_zero,
    make_episode,
    make_model,
)

pytestmark = pytest.mark.native
KINDS = [kind for kind in MODELS if kind != "convnet 5x5"]


@pytest.fixture(autouse=True)
def _built() -> None:
    found = native.available()
    if not found:
        pytest.skip(found.reason)


@pytest.mark.parametrize("remember_only", [False, True], ids=["all", "remember"])
@pytest.mark.parametrize("cycles", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_reference(kind: str, batch: int, cycles: int, remember_only: bool) -> None:
    model, inner = make_model(kind)
    episode = make_episode(batch, cycles, remember_only)
    expected = ReferenceEngine(model, inner, LEARNING_RATE).run(episode)
    assert_agree(NativeEngine(model, inner, LEARNING_RATE).run(episode), expected, model, 1e-9)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_and_channels(threads: int) -> None:
    before = torch.get_num_threads()
    model = build_model("anml", {"rln_chs": 70, "nm_chs": 40, "num_classes": 5}, (3, 28, 28), seed=1).double()
    inner = [name for name, _ in model.named_parameters() if not name.startswith("nm")]
    episode = make_episode(classes=5, channels=3)
    expected = ReferenceEngine(model, inner, LEARNING_RATE).run(episode)
    torch.set_num_threads(threads)
    try:
        engine = NativeEngine(model, inner, LEARNING_RATE)
        # An episode of another size first: buffers are kept, what was in them must not matter.
        engine.run(make_episode(batch=5, classes=5, channels=3))
        assert_agree(engine.run(episode), expected, model, 1e-9)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["anml", "sanml"])
def test_fifty_updates_stay_with_the_reference(kind: str) -> None:
    first, inner = make_model(kind)
    second, _ = make_model(kind)
    expected = follow(ReferenceEngine(first, inner, LEARNING_RATE), first, 50)
    actual = follow(NativeEngine(second, inner, LEARNING_RATE), second, 50)
    for name, weights in expected.items():
        assert (actual[name] - weights).norm() <= 1e-7 * weights.norm(), name


@pytest.mark.parametrize("kind", ["anml", "sanml"])
def test_float32_is_near_float64(kind: str) -> None:
    exact, inner = make_model(kind)
    rounded, _ = make_model(kind, torch.float32)
    expected = ReferenceEngine(exact, inner, LEARNING_RATE).run(make_episode())
    actual = NativeEngine(rounded, inner, LEARNING_RATE).run(make_episode(dtype=torch.float32))
    for name, gradient in expected.gradients.items():
        if not is_true_zero(name, exact):
            assert (actual.gradients[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


def test_a_dead_image_and_ties_take_the_same_subgradients() -> None:
    model, inner = make_model("anml")
    episode = make_episode()
    episode.images[1] = 0  # Every window a tie, the norm at variance zero.
    episode.images[2] = (episode.images[2] > 0.5).double()
    expected = ReferenceEngine(model, inner, LEARNING_RATE).run(episode)
    assert_agree(NativeEngine(model, inner, LEARNING_RATE).run(episode), expected, model, 1e-9)


def test_not_a_number_stays_visible() -> None:
    model, inner = make_model("sanml")
    with torch.no_grad():
        model.get_parameter(inner[0])[0, 0, 0, 0] = torch.nan
    assert NativeEngine(model, inner, LEARNING_RATE).run(make_episode()).loss.isnan()


def test_says_what_it_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inner = make_model("convnet 5x5")
    assert "3x3" in unsupported(model, inner)
    with pytest.raises(ValueError, match="3x3"):
        NativeEngine(model, inner, LEARNING_RATE)
    model, inner = make_model("anml")
    assert not unsupported(model, inner)
    assert "float32" in unsupported(model.half(), inner)


def test_without_a_compiler_it_is_unavailable_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    native._load.cache_clear()
    try:
        assert not native.available()
        assert "no-such-compiler" in native.available().reason
        model, inner = make_model("anml")
        with pytest.raises(RuntimeError, match="not available"):
            NativeEngine(model, inner, LEARNING_RATE).run(make_episode())
    finally:
        native._load.cache_clear()
