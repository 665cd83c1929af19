"""What the tests of engines share: small models of every kind, episodes of noise, and how outcomes are compared."""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from anml.config.methods import InnerOptimizer
from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode, draw_episode
from anml.meta.engine import EpisodeOutcome
from anml.models import build_model
from anml.models.meta_model import MetaModel

CONVNET: dict[str, Any] = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": [3]}}
LINEAR: dict[str, Any] = {"classifier_args": {"num_classes": 9}}
MLP: dict[str, Any] = {
    "classifier": "mlp-classifier",
    "classifier_args": {"num_classes": 9, "hidden_layers": [6, 5]},
}
METRIC: dict[str, Any] = {"classifier": "metric-classifier"}
COSINE: dict[str, Any] = METRIC | {"classifier_args": {"num_classes": 9}}
DISTANCE: dict[str, Any] = METRIC | {"classifier_args": {"num_classes": 9, "metric": "distance", "temperature": 0.1}}
LEARNED: dict[str, Any] = METRIC | {"classifier_args": DISTANCE["classifier_args"] | {"learn_temperature": True}}
RESNET12: dict[str, Any] = {"encoder": "resnet12", "encoder_args": {"channels": [3, 4, 5, 6], "norm_type": "gn"}}
RESNET18: dict[str, Any] = {"encoder": "resnet18", "encoder_args": {"width": 3, "norm_type": "gn"}}
ENCODER: dict[str, Any] = {"encoder": "anml-encoder", "encoder_args": {"rln_chs": 3, "nm_chs": 2}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "anml": ("anml", {"rln_chs": 4, "nm_chs": 3, "num_classes": 9}),
    "nonml": ("nonml", {"rln_chs": 4, "nm_chs": 3, "num_classes": 9}),
    "sanml": ("sanml", {"rln_chs": 4, "num_classes": 9}),
    "oml": ("oml", {"num_filters": 4, "strides": [2, 1, 2], "hidden": 7, "num_classes": 9}),
    "convnet, linear": ("classifier", CONVNET | LINEAR),
    "convnet, mlp": ("classifier", CONVNET | MLP),
    "anml-encoder, linear": ("classifier", ENCODER | LINEAR),
    "anml-encoder, mlp": ("classifier", ENCODER | MLP),
    "convnet, cosine": ("classifier", CONVNET | COSINE),
    "convnet, distance": ("classifier", CONVNET | DISTANCE),
    "anml-encoder, learned temperature": ("classifier", ENCODER | LEARNED),
    "resnet12, linear": ("classifier", RESNET12 | LINEAR),
    "resnet18, cosine": ("classifier", RESNET18 | COSINE),
}
PUBLISHED_INNER = {"anml": ("rln", "fc"), "nonml": ("rln", "fc"), "sanml": ("all",), "oml": ("pn",)}
INNER_LR = 0.1
INNER = InnerOptimizer(INNER_LR)


def make_data() -> ClassImages:
    """Eight classes of noise; what matters here is arithmetic."""
    generator = torch.Generator().manual_seed(0)
    return ClassImages(torch.randint(256, (8, 20, 1, 28, 28), dtype=torch.uint8, generator=generator), "noise")


def make_model(kind: str, seed: int = 1, extra: dict[str, Any] | None = None) -> MetaModel:
    """Return a small model in float64, its norms away from one and zero, or half of the formulas would go untested."""
    name, args = MODELS[kind]
    model = build_model(name, args | (extra or {}), (1, 28, 28), seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def make_config(**changes: Any) -> TrainConfig:
    values = {"dataset": "omniglot", "model": "sanml", "num_batches": 3, "remember_size": 5, "inner_lr": INNER_LR}
    return TrainConfig(**(values | changes))


def make_episode(data: ClassImages, index: int = 0, **changes: Any) -> Episode:
    return draw_episode(data, make_config(**changes), seed=1, index=index, dtype=torch.float64)


def without_effect(model: nn.Module) -> set[str]:
    """Name the biases directly in front of a norm that subtracts the mean: their true gradient is zero."""
    names = set()
    for path, parent in model.named_modules():
        layers = list(parent.named_children())
        for (name, layer), (_, following) in pairwise(layers):
            if isinstance(layer, nn.Conv2d) and isinstance(following, (nn.InstanceNorm2d, nn.BatchNorm2d)):
                names.add(f"{path}.{name}.bias")
    return names


def assert_agree(actual: EpisodeOutcome, expected: EpisodeOutcome, model: MetaModel) -> None:
    """Compare loss, accuracy and the gradient of every parameter by its relative norm."""
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-12, atol=0)
    assert actual.accuracy == expected.accuracy
    assert list(actual.gradients) == list(expected.gradients) == [name for name, _ in model.named_parameters()]
    total = sum(gradient.norm() ** 2 for gradient in expected.gradients.values()) ** 0.5
    for name, gradient in expected.gradients.items():
        found = actual.gradients[name]
        if name in without_effect(model):
            assert found.norm() < 1e-10 * total, name
        else:
            assert gradient.norm() > 0, name
            assert (found - gradient).norm() <= 1e-9 * gradient.norm(), name
