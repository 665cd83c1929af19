"""Every model under every training method: it trains a step, is saved and read, and every protocol evaluates it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from anml.checkpoints import ModelCard, load_model, save_checkpoint
from anml.config.evaluation import EvalConfig
from anml.config.model_args import complete_args, named_part
from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.errors import ConfigError
from anml.evaluate.sweep import LoadedModel, run_sweep, sweep_trajectories
from anml.models import build_model
from anml.models.meta_model import MetaModel
from anml.train.iid import BatchUpdater
from anml.train.loop import EpisodeUpdater

SHAPE = (3, 36, 36)
OUTPUTS = 9
pytestmark = pytest.mark.slow


def classifier(encoder: str, encoder_args: dict[str, Any], head: str = "linear", **head_args: Any) -> dict[str, Any]:
    arguments = {"encoder": encoder, "encoder_args": encoder_args, "classifier": f"{head}-classifier"}
    return {"model": "classifier", "model_args": arguments | {"classifier_args": {"num_classes": OUTPUTS} | head_args}}


CONVNET = {"num_blocks": 2, "num_filters": 4}
BATCH_NORM = CONVNET | {"norm_type": "bn"}
RESNET12 = {"channels": [3, 4, 5, 6]}
MODELS: dict[str, dict[str, Any]] = {
    "anml": {"model": "anml", "model_args": {"rln_chs": 4, "nm_chs": 3, "num_classes": OUTPUTS}},
    "nonml": {"model": "nonml", "model_args": {"rln_chs": 4, "nm_chs": 3, "num_classes": OUTPUTS}},
    "sanml": {"model": "sanml", "model_args": {"rln_chs": 4, "num_classes": OUTPUTS}},
    "oml": {
        "model": "oml",
        "model_args": {"num_filters": 4, "strides": [2, 1, 2], "hidden": 8, "num_classes": OUTPUTS},
    },
    "convnet, linear": classifier("convnet", CONVNET),
    "convnet bn, linear": classifier("convnet", BATCH_NORM),
    "convnet, mlp": classifier("convnet", CONVNET, "mlp", hidden_layers=[8, 7]),
    "convnet, cosine": classifier("convnet", CONVNET, "metric"),
    "convnet, distance": classifier("convnet", CONVNET, "metric", metric="distance", temperature=0.1),
    "anml-encoder, cosine": classifier("anml-encoder", {"rln_chs": 4, "nm_chs": 3}, "metric"),
    "resnet12, linear": classifier("resnet12", RESNET12),
    "resnet12, cosine": classifier("resnet12", RESNET12, "metric"),
    "resnet18, linear": classifier("resnet18", {"width": 2}),
    "resnet34 gn, mlp": classifier("resnet34", {"width": 2, "norm_type": "gn"}, "mlp", hidden_layers=8),
}
METHODS = ["meta", "meta-first-order", "sequential_episodic", "iid"]
PROTOCOLS: dict[str, dict[str, Any]] = {
    "sequential, head": {"eval_method": "sequential", "opt_params": "head"},
    "sequential, all": {"eval_method": "sequential", "opt_params": "all"},
    "iid": {"eval_method": "iid", "opt_params": "all", "batch_size": 5},
    "from least squares": {"eval_method": "sequential", "reinit_method": "lstsq"},
    "zero_shot": {"eval_method": "zero_shot"},
}


@pytest.fixture(scope="module")
def data() -> ClassImages:
    """Seven classes of noise."""
    generator = torch.Generator().manual_seed(0)
    return ClassImages(torch.randint(256, (7, 8, *SHAPE), dtype=torch.uint8, generator=generator), "noise")


def train_a_step(model: MetaModel, kind: str, method: str, data: ClassImages) -> torch.Tensor:
    """Update the model once; return the loss."""
    values = {"dataset": "glyphs", "train_method": method, "num_batches": 2, "remember_size": 6, "epochs": 1}
    values |= {"batch_size": 8} if method == "iid" else {"inner_params": ["all"], "engine": "fast"}
    config = TrainConfig(**(values | MODELS[kind]))
    updater = (BatchUpdater if method == "iid" else EpisodeUpdater)(config, model, data)
    return updater.step(0).loss


def evaluate(model: MetaModel, card: ModelCard, protocol: str, data: ClassImages) -> list[float]:
    """Return every accuracy that an evaluation yields."""
    values = {"dataset": "omniglot", "classes": 3, "train_examples": 4, "test_examples": 2, "runs": 1, "init_size": 6}
    config = EvalConfig(**(values | PROTOCOLS[protocol]))
    results = list(run_sweep(LoadedModel(model, card, data, config), "flavor", sweep_trajectories(config)))
    return [value for result in results for row in result.rows for value in (row.train_acc, row.test_acc)]


@pytest.mark.parametrize("kind", MODELS)
def test_trains_is_saved_and_is_evaluated(tmp_path: Path, data: ClassImages, kind: str) -> None:
    name, args = MODELS[kind]["model"], MODELS[kind]["model_args"]
    for method in METHODS:
        model = build_model(name, args, SHAPE, seed=1)
        before = copy.deepcopy(dict(model.named_parameters()))
        assert train_a_step(model, kind, method, data).isfinite(), method
        assert all(parameter.isfinite().all() for parameter in model.parameters()), method
        unchanged = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
        assert not {n for n in unchanged if not n.endswith("conv.bias")}, method  # A norm takes those away again.

        complete = complete_args(named_part("model", name).args(**args))
        card = ModelCard(name, complete, SHAPE, kind, "glyphs", method, step=1, seed=1)
        save_checkpoint(tmp_path / method, model, card, {})
        loaded, _ = load_model(tmp_path / method)
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items()), method
    # An evaluation asks for weights, whatever trained them: those of the last method stand for all.
    loaded, card = load_model(tmp_path / METHODS[-1])
    evaluate_by_every_protocol(loaded, card, "metric" in args.get("classifier", ""), data)


def evaluate_by_every_protocol(model: MetaModel, card: ModelCard, has_metric_head: bool, data: ClassImages) -> None:
    for protocol in PROTOCOLS:
        if has_metric_head and protocol in ("zero_shot", "from least squares"):
            with pytest.raises(ConfigError, match="metric layer: least squares"):
                evaluate(model, card, protocol, data)
        else:
            accuracies = evaluate(model, card, protocol, data)
            assert accuracies, protocol
            assert all(0 <= accuracy <= 1 for accuracy in accuracies), protocol
