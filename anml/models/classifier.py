"""`classifier`: any encoder followed by any head, with the parameter names of higherANML's configs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from anml.config.model_args import ClassifierArgs
from anml.models.anml import AnmlEncoder
from anml.models.blocks import output_width
from anml.models.convnet import convnet
from anml.models.heads import HEADS, OutputLayer
from anml.models.meta_model import MetaModel
from anml.models.resnet import resnet12, resnet18

ENCODERS: Mapping[str, Callable[[Any, tuple[int, int, int]], nn.Module]] = {
    "convnet": convnet,
    "anml-encoder": AnmlEncoder,
    "resnet12": resnet12,
    "resnet18": resnet18,
    "resnet34": resnet18,  # Its arguments have more blocks.
}


class Classifier(MetaModel):
    """Submodules `encoder` and `classifier`.

    The latter holds `classifier.linear`; or `classifier.mlp.0`, `classifier.mlp.2`, ...; or `classifier.metric`.
    """

    head_prefix = "classifier"

    def __init__(self, args: ClassifierArgs, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.encoder = ENCODERS[args.encoder](args.encoder_record(), image_shape)
        if isinstance(self.encoder, AnmlEncoder):
            self.gate_prefix = "encoder.nm"
        self.classifier = HEADS[args.classifier](args.head_record(), output_width(self.encoder, image_shape))
        layers = [name for name, module in self.classifier.named_modules() if isinstance(module, OutputLayer)]
        self.head_layer = f"classifier.{layers[-1]}"

    def modulate(self, images: torch.Tensor) -> torch.Tensor | None:
        """Return the gate of `anml-encoder`, None for other encoders."""
        return self.encoder.modulate(images) if isinstance(self.encoder, AnmlEncoder) else None

    def encode(self, images: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """Return features [n, features]."""
        return self.encoder(images) if gate is None else self.encoder(images, gate)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes]."""
        return self.classifier(features)
