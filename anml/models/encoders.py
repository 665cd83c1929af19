"""Encoder `convnet`: convolution blocks of any number, width, stride, norm and pooling."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn

from anml.config.model_args import ClassifierArgs, ConvnetArgs, Resnet12Args, Resnet18Args
from anml.models.anml import AnmlEncoder
from anml.models.blocks import make_norm, output_width
from anml.models.heads import HEADS, OutputLayer
from anml.models.meta_model import MetaModel

T = TypeVar("T")


def convnet(args: ConvnetArgs, image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Return blocks `block1` ... `blockN`, each convolution, norm, ReLU, max-pooling, and a flattening."""
    net = nn.Sequential()
    channels = image_shape[0]
    for i in range(args.num_blocks):
        filters = _of_block(args.num_filters, i)
        net.add_module(f"block{i + 1}", _block(args, i, channels, filters))
        channels = filters
    net.add_module("flatten", nn.Flatten())
    return net


def _block(args: ConvnetArgs, i: int, channels: int, filters: int) -> nn.Sequential:
    kernel, stride, padding = (_of_block(column, i) for column in (args.kernel_size, args.stride, args.padding))
    norm, pool = _of_block(args.norm_type, i), _of_block(args.pool_size, i)
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(channels, filters, kernel, stride=stride, padding=padding))
    if norm:
        block.add_module("norm", make_norm(norm, filters))
    block.add_module("relu", nn.ReLU())
    if pool:
        block.add_module("pool", nn.MaxPool2d(pool))
    return block


def _of_block(values: tuple[T, ...], i: int) -> T:
    """Return the value of block i: its own, or the one value for all blocks."""
    return values[0 if len(values) == 1 else i]


# Residual networks for images of 84x84 pixels and more: `resnet12` of few-shot learning, `resnet18` and `resnet34`.
#
# All end in a mean over the last feature map. Their BatchNorms train on the statistics of each batch, in the inner loop
# too, and are evaluated with running ones; `norm_type: gn` or `in` makes images independent of each other.


class Residual(nn.Module):
    """activation(body(x) + shortcut(x)), then maybe pooled."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Module, activation: nn.Module, pool: int = 0) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation
        self.pool = nn.MaxPool2d(pool) if pool else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, in_channels, h, w] to [n, out_channels, h', w']."""
        return self.pool(self.activation(self.body(images) + self.shortcut(images)))


class MapMean(nn.Module):
    """The mean over a feature map: [n, C, h, w] to [n, C]."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the means."""
        return maps.mean(dim=(2, 3))


def resnet12(args: Resnet12Args, image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Return `stage1` ... `stage4`, each one block of three 3x3 convolutions, pooled by 2.

    [n, C, H, W] to [n, channels of the last stage]. The ResNet-12 of few-shot learning (Lee et al. 2019, arXiv
    1904.03758), without its DropBlock.
    """
    net = nn.Sequential()
    for number, (before, after) in enumerate(pairwise((image_shape[0], *args.channels)), 1):
        body = nn.Sequential()
        for i in (1, 2, 3):
            _add_conv(body, i, args.norm_type, before if i == 1 else after, after)
            if i < 3:
                body.add_module(f"relu{i}", nn.LeakyReLU(0.1))
        shortcut = _shortcut(args.norm_type, before, after, stride=1)
        net.add_module(f"stage{number}", Residual(body, shortcut, nn.LeakyReLU(0.1), pool=2))
    net.add_module("mean", MapMean())
    return net


def resnet18(args: Resnet18Args, image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Return `stem` and `stage1` ... `stage4`, of `args.blocks` blocks of two 3x3 convolutions.

    [n, C, H, W] to [n, 8 * width] (He et al. 2016, arXiv 1512.03385, table 1, without the output layer; shortcuts to
    another width are 1x1 convolutions).
    """
    net = nn.Sequential()
    net.add_module("stem", _stem(args, image_shape[0]))
    channels = args.width
    for number, blocks in enumerate(args.blocks, 1):
        width, stage = args.width * 2 ** (number - 1), nn.Sequential()
        for i in range(blocks):
            stride = 2 if number > 1 and i == 0 else 1
            stage.add_module(f"block{i + 1}", _basic_block(args.norm_type, channels, width, stride))
            channels = width
        net.add_module(f"stage{number}", stage)
    net.add_module("mean", MapMean())
    return net


def _stem(args: Resnet18Args, channels: int) -> nn.Sequential:
    stem = nn.Sequential()
    _add_conv(stem, 1, args.norm_type, channels, args.width, kernel=7, stride=2)
    stem.add_module("relu1", nn.ReLU())
    stem.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
    return stem


def _basic_block(norm: str | None, before: int, after: int, stride: int) -> Residual:
    body = nn.Sequential()
    _add_conv(body, 1, norm, before, after, stride=stride)
    body.add_module("relu1", nn.ReLU())
    _add_conv(body, 2, norm, after, after)
    is_same = before == after and stride == 1
    return Residual(body, nn.Identity() if is_same else _shortcut(norm, before, after, stride), nn.ReLU())


def _shortcut(norm: str | None, before: int, after: int, stride: int) -> nn.Sequential:
    shortcut = nn.Sequential()
    _add_conv(shortcut, 1, norm, before, after, kernel=1, stride=stride)
    return shortcut


def _add_conv(
    net: nn.Sequential, number: int, norm: str | None, before: int, after: int, kernel: int = 3, stride: int = 1
) -> None:
    """Add `convN` and `normN`; a convolution has a bias only where no norm brings one."""
    conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=norm is None)
    net.add_module(f"conv{number}", conv)
    net.add_module(f"norm{number}", make_norm(norm, after))


# `classifier`: any encoder followed by any head, with the parameter names of higherANML's configs.

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
