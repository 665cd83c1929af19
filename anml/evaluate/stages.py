"""How far into a model the inputs of a run already are: layers that no learning changes see each image once.

images    -> encode ->  features  -> all of the head but its output layer ->  head  -> output layer -> logits
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch.func import functional_call

from anml.models.meta_model import MetaModel, belongs_to

Stage = Literal["images", "features", "head"]
Weights = dict[str, torch.Tensor]


def latest_stage(model: MetaModel, changed: Iterable[str]) -> Stage:
    """Return the last stage before all parameters with these names."""
    changed = list(changed)
    if all(belongs_to(name, model.head_layer) for name in changed):
        return "head"
    return "features" if all(belongs_to(name, model.head_prefix) for name in changed) else "images"


def advance(model: MetaModel, images: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Return what a stage receives of images [n, C, H, W]."""
    if stage == "images":
        return images
    if stage == "head":
        return head_inputs(model, images, "images")
    with torch.no_grad():
        return torch.cat([model(part, part="encode") for part in images.split(_batch_size(images))])


def head_inputs(model: MetaModel, inputs: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Return what the output layer receives, [n, in_features], of what a stage receives."""
    if stage == "head":
        return inputs
    received: list[torch.Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, arguments: received.append(arguments[0]))
    try:
        predict(model, inputs, stage)
    finally:
        handle.remove()
    return torch.cat(received)


def classify(model: MetaModel, inputs: torch.Tensor, stage: Stage, weights: Weights | None = None) -> torch.Tensor:
    """Return logits [n, outputs] of what a stage receives; `weights` replace parameters of these names."""
    weights = weights or {}
    if stage == "head":
        prefix = f"{model.head_layer}."
        of_head = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        return functional_call(model.head, of_head, (inputs,))
    return functional_call(model, weights, (inputs,), {"part": "classify" if stage == "features" else "all"})


@torch.no_grad()
def predict(model: MetaModel, inputs: torch.Tensor, stage: Stage, weights: Weights | None = None) -> torch.Tensor:
    """Return logits as `classify` does, in batches and without a graph."""
    if stage != "images":
        return classify(model, inputs, stage, weights)
    return torch.cat([classify(model, part, stage, weights) for part in inputs.split(_batch_size(inputs))])


def _batch_size(images: torch.Tensor) -> int:
    # On a CPU small tensors stay in its caches, and malloc hands out the same pages again.
    return 512 if images.is_cuda else 16
