"""The networks. Every model has an encoder (images to features), maybe a gate, and a head (features to logits)."""

from collections.abc import Callable
from typing import Any

import torch

from anml.config.model_args import MODEL_ARGS
from anml.models.anml import Anml, Nonml, Oml, Sanml
from anml.models.encoders import Classifier
from anml.models.meta_model import MetaModel, initialise

# The table of models: name to constructor.

MODELS: dict[str, Callable[..., MetaModel]] = {
    "anml": Anml,
    "nonml": Nonml,
    "sanml": Sanml,
    "oml": Oml,
    "classifier": Classifier,
}


def build_model(name: str, args: dict[str, Any], image_shape: tuple[int, int, int], seed: int) -> MetaModel:
    """Return a freshly initialised model. Raises ConfigError when the arguments do not fit the images."""
    # Constructors draw from the global generator; `initialise` overwrites all of it, and the generator is put back.
    with torch.random.fork_rng(devices=[]):
        model = MODELS[name](MODEL_ARGS[name](**args), image_shape)
    initialise(model, seed)
    return model
