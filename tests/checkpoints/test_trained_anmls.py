"""The checkpoints that are shipped: small enough for a clone, described, and as good as their cards say."""

import json
from pathlib import Path
from typing import Any

import pytest

from anml.checkpoints import load_model
from anml.config.evaluation import DataRequest, EvalConfig
from anml.data import load_images
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories

FOLDER = Path(__file__).resolve().parents[2] / "trained_anmls"
SHIPPED = sorted(path.parent.name for path in FOLDER.glob("*/model.json"))
MOST_BYTES = 16 * 2**20


def about(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name / "model.json").read_text())["about"]


def test_there_is_an_anml() -> None:
    assert "omniglot-anml" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_small_intact_and_described(name: str) -> None:
    assert (FOLDER / name / "model.safetensors").stat().st_size < MOST_BYTES
    model, card = load_model(FOLDER / name)
    assert card.step > 0
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert about(name)["config"]["model"] == card.model
    assert about(name)["accuracy"]


# Of a model with many flavors, those that it is best at.
BEST_AT = {"omniglot-prototypes": ("ncm", "gemcl-map"), "omniglot-prototypes-84": ("ncm", "slda")}
SCORED = [
    (name, row)
    for name in SHIPPED
    for row in about(name)["accuracy"]
    if row["classes"] == 10 and row["flavor"] in BEST_AT.get(name, (row["flavor"],))
]


def test_the_anml_is_scored_by_the_protocol_and_without_momentum() -> None:
    assert {row["flavor"] for name, row in SCORED if name == "omniglot-anml"} == {"olft", "olft-no-momentum"}


@pytest.mark.omniglot
@pytest.mark.parametrize(("name", "said"), SCORED, ids=[f"{name} {row['flavor']}" for name, row in SCORED])
def test_a_shipped_model_scores_what_its_card_says_at_10_classes(
    name: str, said: dict[str, Any], omniglot_path: str
) -> None:
    model, card = load_model(FOLDER / name)
    flavor = EvalConfig.model_validate(about(name)["config"]["eval"][said["flavor"]])
    config = flavor.model_copy(update={"classes": (10,), "lr": (said["lr"] or flavor.lr[0],), "eval_freq": 0})
    data = load_images(DataRequest(card.dataset, "eval", card.image_shape[1], omniglot_path))
    results = list(run_sweep(LoadedModel(model, card, data, config), said["flavor"], sweep_trajectories(config)))
    assert len(results) == said["runs"]
    found = sum(result.rows[-1].test_acc for result in results) / len(results)
    # The same runs; rounding the weights to float16 may move an example or two of 500.
    assert found == pytest.approx(said["test_acc"], abs=0.01)
