"""The tests of the Triton engine. test_triton.py runs them in a process that is the interpreter's, or on a GPU."""

import pytest
import torch

from anml.data.episodes import Episode
from anml.meta import ENGINES, triton_blocks, triton_head
from anml.meta.adjoint import AdjointEngine, TritonEngine
from anml.meta.engine import EpisodeOutcome
from anml.meta.outer_step import OuterStep
from anml.meta.static_update import StaticUpdate, UpdateGraph
from anml.models.meta_model import select_names
from tests.meta import cases
from tests.meta.test_adjoint import INNER, assert_agree, make_episode, make_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut products and the head's tiles although all is small; on a CPU one program does all that it can."""
    monkeypatch.setattr(triton_blocks, "_SHORTEST_PART", 20)
    monkeypatch.setattr(triton_head, "_TILE", 32)  # two rows of eleven classes
    if DEVICE.type == "cpu":  # The interpreter takes a tenth of a second for a program, however much that does.
        monkeypatch.setattr(triton_blocks, "_TILE", 2**15)


def run(engine: type[AdjointEngine], kind: str, episode: Episode) -> EpisodeOutcome:
    model, inner = make_model(kind)
    names = ("images", "labels", "support_index")
    on_device = episode._replace(**{name: getattr(episode, name).to(DEVICE) for name in names})
    outcome = engine(model.to(DEVICE), inner, INNER).run(on_device)
    gradients = {name: gradient.cpu() for name, gradient in outcome.gradients.items()}
    return EpisodeOutcome(outcome.loss.cpu(), outcome.accuracy.cpu(), gradients)


# With a gate and without, last blocks pooled and not, several examples a step; kernels, strides and padding.
@pytest.mark.parametrize(("kind", "batch"), [("anml", 1), ("sanml pooled", 2), ("convnet 5x5", 1), ("convnet", 1)])
def test_gradients_are_those_of_the_sweep(kind: str, batch: int) -> None:
    expected = run(AdjointEngine, kind, make_episode(batch))
    assert_agree(run(TritonEngine, kind, make_episode(batch)), expected, make_model(kind)[0], 1e-9)


def test_dead_images_and_ties_take_the_same_subgradients() -> None:
    episode = make_episode()
    episode.images[1] = 0  # Every window a tie, the norm at variance zero.
    episode.images[2] = (episode.images[2] > 0.5).double()
    expected = run(AdjointEngine, "sanml", episode)
    assert_agree(run(TritonEngine, "sanml", episode), expected, make_model("sanml")[0], 1e-9)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="no GPU: graphs are not captured here")
@pytest.mark.parametrize("branches", [1, 2])
def test_captured_updates_repeat_to_the_bit_and_are_those_of_the_sweep(branches: int) -> None:
    weights = [train_captured(engine, branches) for engine in ("triton", "triton", "sweep")]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
        assert (weight - weights[2][name]).norm() <= 1e-6 * weight.norm(), name


def train_captured(engine: str, branches: int) -> dict[str, torch.Tensor]:
    """Return the weights of the last branch after ten updates."""
    config = cases.make_config(model="anml", inner_params=cases.PUBLISHED_INNER["anml"], log_freq=4)
    outers = [OuterStep(config, cases.make_model("anml", seed).to(DEVICE), seed) for seed in range(branches)]
    names = select_names(outers[0].model, config.inner_params)
    runs = [ENGINES[engine](outer.model, names, config.inner).run for outer in outers]
    data = cases.make_data().to(DEVICE)
    graph = UpdateGraph([StaticUpdate(config, outer, run, data) for outer, run in zip(outers, runs, strict=True)])
    for index in range(10):
        graph.step(index)
    assert not graph.note
    return {name: parameter.detach().cpu() for name, parameter in outers[-1].model.named_parameters()}


@pytest.mark.filterwarnings("ignore:invalid value")
def test_not_a_number_stays_visible() -> None:
    episode = make_episode()
    episode.images[0, 0, 3, 3] = torch.nan
    assert run(TritonEngine, "sanml", episode).loss.isnan()
