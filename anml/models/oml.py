"""OML (Javed & White 2019, arXiv 1905.12588): only the two Linear layers learn in the inner loop."""

from itertools import pairwise

import torch
from torch import nn

from anml.config.model_args import OmlArgs
from anml.models.blocks import output_width
from anml.models.meta_model import MetaModel


class Oml(MetaModel):
    """Convolutions without norm `rln.*`, and the prediction network `pn.0`, `pn.2`."""

    head_layer = "pn.2"
    head_prefix = "pn"

    def __init__(self, args: OmlArgs, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [image_shape[0], *[args.num_filters] * len(args.strides)]
        for (before, after), stride in zip(pairwise(widths), args.strides, strict=True):
            layers += [nn.Conv2d(before, after, kernel_size=3, stride=stride), nn.ReLU()]
        self.rln = nn.Sequential(*layers, nn.Flatten())
        features = output_width(self.rln, image_shape)
        self.pn = nn.Sequential(nn.Linear(features, args.hidden), nn.ReLU(), nn.Linear(args.hidden, args.num_classes))

    def encode(self, images: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """Return features [n, features]; there is no gate."""
        return self.rln(images)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes]."""
        return self.pn(features)
