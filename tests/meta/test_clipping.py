"""Clipped gradients of every engine are those of `higher`."""

from collections.abc import Callable

import pytest
import torch

from anml.config.methods import InnerOptimizer
from anml.data.episodes import Episode
from anml.meta.adjoint import AdjointEngine, NativeEngine
from anml.meta.engine import Engine, EpisodeOutcome, ReferenceEngine
from anml.meta.fast import FastEngine
from anml.meta.functional_episode import FunctionalEpisode
from anml.meta.outer_step import MetaStep
from anml.models.meta_model import MetaModel, select_names
from anml.native import available
from tests.meta.cases import (
    INNER,
    PUBLISHED_INNER,
    make_config,
    make_data,
    make_episode,
    make_model,
    without_effect,
)

MOST = 0.01


class ProgramEngine:
    """The program of the compiled and graph engines, not compiled."""

    name = "program"
    note = ""

    def __init__(self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer) -> None:
        self.model, self.program = model, FunctionalEpisode(model, inner_names, inner)

    def run(self, episode: Episode) -> EpisodeOutcome:
        return self.program.run(dict(self.model.named_parameters()), episode)


ENGINES: dict[str, Callable[..., Engine]] = {
    "fast": FastEngine,
    "program": ProgramEngine,
    "sweep": AdjointEngine,
    "native": NativeEngine,
}
CASES = (
    [("anml", name) for name in ENGINES] + [("sanml", name) for name in ENGINES] + [("oml", "fast"), ("oml", "program")]
)


def clipped(kind: str, make: Callable[..., Engine]) -> dict[str, torch.Tensor]:
    """Return the gradients that the outer optimizer has met in one update."""
    model = make_model(kind)
    engine = make(model, select_names(model, PUBLISHED_INNER[kind]), INNER)
    config = make_config(model=kind, max_grad_norm=MOST)
    MetaStep(config, model, engine, seed=1).update(make_episode(make_data(), batch_size=2), 0)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_norm_is_that_of_the_parameters_that_the_outer_loop_changes() -> None:
    model = make_model("anml")
    engine = FastEngine(model, select_names(model, PUBLISHED_INNER["anml"]), INNER)
    config = make_config(model="anml", max_grad_norm=MOST, outer_params=["rln"])
    MetaStep(config, model, engine, seed=1).update(make_episode(make_data(), batch_size=2), 0)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == set(select_names(model, ["rln"]))
    assert float(torch.stack([g.norm() for g in gradients.values()]).norm()) == pytest.approx(MOST, rel=1e-3)


@pytest.mark.native
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_clipped_gradients_are_those_of_higher(kind: str, name: str) -> None:
    """One norm over all gradients: an engine that is off in one tensor scales all others."""
    if name == "native" and not available("train"):
        pytest.skip(available("train").reason)
    found, expected = clipped(kind, ENGINES[name]), clipped(kind, ReferenceEngine)
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert float(total) == pytest.approx(MOST, rel=1e-3)
    for parameter in set(expected) - without_effect(make_model(kind)):
        assert (found[parameter] - expected[parameter]).norm() <= 1e-9 * expected[parameter].norm(), parameter
