"""The networks. Every model has an encoder (images to features), maybe a gate, and a head (features to logits).

config/model_args.py lists them by name.
"""

from typing import Any

import torch

from anml.config.model_args import MODELS, Initialisation, named_part
from anml.errors import ConfigError
from anml.models.heads import OutputLayer
from anml.models.meta_model import MetaModel, initialise


def build_model(
    name: str,
    args: dict[str, Any],
    image_shape: tuple[int, int, int],
    seed: int,
    initialisation: Initialisation | None = "uniform",
) -> MetaModel:
    """Return a freshly initialised model.

    name: of MODELS, or a reference to a user's own class. initialisation: None leaves weights as they are, for a check
    of shapes under `torch.device("meta")`. Raises ConfigError when its code cannot be loaded or is no
    model, or when the arguments do not fit the images.
    """
    part = named_part("model", name)
    # Constructors draw from the global generator, which is put back. `initialise` draws convolutions and Linear layers
    # again; the seed is for other layers that a user's model may have.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = part.build(part.args(**args), image_shape=image_shape)
        problem = "" if name in MODELS else _missing(model) or _wrong_output(model, image_shape)
    if problem:
        message = f"model: {name}: {problem}"
        raise ConfigError(message)
    if initialisation:
        initialise(model, seed, initialisation)
    return model


def _missing(model: Any) -> str:
    if not isinstance(model, MetaModel):
        return f"is a {type(model).__name__}, not a subclass of anml.models.meta_model.MetaModel"
    lacks = [name for name in ("encode", "classify") if getattr(type(model), name) is getattr(MetaModel, name)]
    lacks += [name for name in ("head_layer", "head_prefix") if not hasattr(model, name)]
    if lacks:
        return f"defines no {', '.join(lacks)}"
    is_head = isinstance(dict(model.named_modules()).get(model.head_layer), OutputLayer)
    return "" if is_head else f"has no nn.Linear (or MetricHead) {model.head_layer}, its head_layer"


def _wrong_output(model: MetaModel, image_shape: tuple[int, int, int]) -> str:
    model.eval()  # A BatchNorm would take this probe into its running statistics.
    try:
        with torch.no_grad():
            logits = list(model(torch.zeros(2, *image_shape)).shape)  # type: ignore[union-attr]
    except Exception as error:  # Whatever a user's code raises is the user's to mend.
        return f"running it on images {[2, *image_shape]} failed: {type(error).__name__}: {error}"
    model.train()
    expected = [2, model.head.out_features]
    return "" if logits == expected else f"returns {logits} for two images; logits are {expected}"
