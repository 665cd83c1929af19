"""A small model and a small data set that all evaluation tests use."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.models import build_model
from anml.models.meta_model import MetaModel


@pytest.fixture(scope="session")
def data() -> ClassImages:
    """Twelve classes of blurred noise with their own mean image, so that some of it can be learned."""
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(12, 1, 1, 28, 28, generator=generator)
    images = means + 0.4 * torch.randn(12, 20, 1, 28, 28, generator=generator)
    return ClassImages((images.clamp(0, 1) * 255).to(torch.uint8), "noise")


@pytest.fixture
def model() -> MetaModel:
    return build_model("anml", {"rln_chs": 4, "nm_chs": 3, "num_classes": 30}, (1, 28, 28), seed=1)


@pytest.fixture
def make_config() -> Callable[..., EvalConfig]:
    def make(**changes: Any) -> EvalConfig:
        values = {"dataset": "omniglot", "classes": 12, "train_examples": 10, "test_examples": 5, "runs": 1}
        return EvalConfig(**(values | changes))

    return make
