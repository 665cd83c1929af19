"""Training holds no more memory after many episodes than after a few."""

from pathlib import Path

import pytest

from anml.meta import make_engine
from anml.meta.outer_step import MetaStep
from anml.models.meta_model import select_names
from anml.native import available
from tests.meta.cases import make_config, make_data, make_episode, make_model

STATUS = Path("/proc/self/status")


def resident() -> float:
    """Return the memory that this process holds, in megabytes."""
    lines = STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.skipif(not STATUS.exists(), reason="reads /proc")
@pytest.mark.parametrize("engine", ["fast", "sweep", pytest.param("native", marks=pytest.mark.native)])
def test_memory_does_not_grow_with_episodes(engine: str) -> None:
    if engine == "native" and not available("train"):
        pytest.skip(available("train").reason)
    model, data = make_model("anml"), make_data()
    config = make_config(model="anml", inner_params=["rln", "fc"], engine=engine)
    step = MetaStep(config, model, make_engine(config, model, select_names(model, ["rln", "fc"]))[0], seed=1)

    def train(first: int, last: int) -> None:
        for index in range(first, last):
            step.update(make_episode(data, index), index)

    train(0, 30)
    before = resident()
    train(30, 330)
    # A leak of one episode's images alone (8 of 28 x 28 in float64) would be 15 MB.
    assert resident() - before < 8
