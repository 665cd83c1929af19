"""What a GPU adds up in the order of its threads must not matter: no sum over repeated indices in any training."""

from collections.abc import Callable
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from anml.data.episodes import Episode
from anml.meta.adjoint import AdjointEngine
from anml.meta.engine import FirstOrderEngine
from anml.meta.fast import FastEngine
from anml.meta.functional_episode import FunctionalEpisode
from anml.models.meta_model import MetaModel, select_names
from anml.train.few_shot import FewShotUpdater
from tests.meta.cases import INNER, PUBLISHED_INNER, make_config, make_data, make_episode, make_model

DATA = make_data()


class Sums(TorchDispatchMode):
    """Collects the operations that a GPU does by atomic additions, and the indices that they meet more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.repeated = set[str](), set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.rstrip("_") in ("index_add", "scatter_add"):
            self.seen.add(name)
            index, dim = args[2], args[1] if args[2].dim() > 1 else 0
            if (index.sort(dim).values.diff(dim=dim) == 0).any():
                self.repeated.add(name)
        return func(*args, **(kwargs or {}))


def functional(model: MetaModel, names: list[str]) -> Callable[[Episode], object]:
    program = FunctionalEpisode(model, names, INNER)
    return lambda episode: program.run(dict(model.named_parameters()), episode)


ENGINES: dict[str, Callable[[MetaModel, list[str]], Callable[[Episode], object]]] = {
    "sweep": lambda model, names: AdjointEngine(model, names, INNER).run,
    "fast": lambda model, names: FastEngine(model, names, INNER).run,
    "first-order": lambda model, names: FirstOrderEngine(model, names, INNER, keep_fast_weights=False).run,
    "functional": functional,
}


KINDS = ("anml", "sanml", "oml", "convnet, linear")


@pytest.mark.parametrize(
    ("kind", "engine"), [(kind, engine) for kind in KINDS for engine in ENGINES if (kind, engine) != ("oml", "sweep")]
)
def test_no_engine_sums_over_repeated_indices(kind: str, engine: str) -> None:
    model = make_model(kind)
    run = ENGINES[engine](model, select_names(model, PUBLISHED_INNER.get(kind, ("all",))))
    with Sums() as sums:
        run(make_episode(DATA, batch_size=2, train_cycles=3))
    assert not sums.repeated
    assert sums.seen or (engine, kind) != ("sweep", "anml")  # Or this test looks for the wrong operations.


@pytest.mark.parametrize("method", ["prototypes", "gemcl"])
def test_no_head_without_a_gradient_sums_over_repeated_indices(method: str) -> None:
    config = make_config(train_method=method, few_shot={"ways": 3, "shots": 8, "queries": 2})
    updater = FewShotUpdater(config, make_model("sanml").float(), DATA)
    with Sums() as sums:
        updater.step(0)
    assert not sums.repeated
