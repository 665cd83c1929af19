"""ANML (Beaulieu et al. 2020, arXiv 2002.09571); NONML, whose gate does not gate; SANML, which has none.

And OML (Javed & White 2019, arXiv 1905.12588).
"""

from itertools import pairwise

import torch
from torch import nn

from anml.config.model_args import AnmlArgs, AnmlEncoderArgs, OmlArgs, SanmlArgs
from anml.models.blocks import conv_stack, output_width
from anml.models.meta_model import MetaModel


class AnmlEncoder(nn.Module):
    """Features of the prediction network `rln`, gated by the neuromodulatory network `nm`."""

    def __init__(self, args: AnmlEncoderArgs, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.rln = conv_stack(image_shape, args.rln_chs, args.num_blocks, args.pool_rln_output)
        self.nm = conv_stack(image_shape, args.nm_chs, args.num_blocks, args.pool_nm_output)
        self.features = output_width(self.rln, image_shape)
        self.nm.add_module("fc", nn.Linear(output_width(self.nm, image_shape), self.features))

    def modulate(self, images: torch.Tensor) -> torch.Tensor:
        """Return the gate [n, features], each in (0, 1)."""
        return torch.sigmoid(self.nm(images))

    def forward(self, images: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return self.rln(images) * (self.modulate(images) if gate is None else gate)


class _Gated(MetaModel):
    """What ANML and NONML share: parameters `rln.*`, `nm.*`, `fc.*`; `fc` sees `copies` times the features."""

    head_layer = head_prefix = "fc"
    gate_prefix = "nm"
    copies = 1

    def __init__(self, args: AnmlArgs, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        encoder = AnmlEncoder(args, image_shape)
        self.rln, self.nm = encoder.rln, encoder.nm
        self.fc = nn.Linear(self.copies * encoder.features, args.num_classes)

    def modulate(self, images: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.nm(images))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(features)


class Anml(_Gated):
    """ANML as published."""

    def encode(self, images: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return self.rln(images) * (self.modulate(images) if gate is None else gate)


# Not derived from Anml: the engines that are made for its multiplication tell it by its type.
class Nonml(_Gated):
    """NONML: the control for ANML's multiplication. Parameters of the same shapes but for fc.

    The neuromodulatory network computes the same values in (0, 1), as many as there are features, but they are appended
    to the features, not multiplied with them: fc sees [rln(x), sigmoid(nm(x))], twice as many inputs (4608 of 28x28
    pixels, in the default width). What the one network sees can then no longer switch off what the other has learned.
    """

    copies = 2

    def encode(self, images: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return torch.cat([self.rln(images), self.modulate(images) if gate is None else gate], dim=1)


class Sanml(MetaModel):
    """SANML: parameters `rln.*`, `fc.*`."""

    head_layer = head_prefix = "fc"

    def __init__(self, args: SanmlArgs, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.rln = conv_stack(image_shape, args.rln_chs, args.num_blocks, args.pool_rln_output)
        self.fc = nn.Linear(output_width(self.rln, image_shape), args.num_classes)

    def encode(self, images: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return self.rln(images)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(features)


class Oml(MetaModel):
    """Convolutions without norm `rln.*`; and the prediction network `pn.0`, `pn.2`, which the inner loop trains."""

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
        return self.rln(images)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.pn(features)
