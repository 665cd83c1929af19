"""The encoders of a `classifier`, by the names of config/model_args.py.

`convnet`: convolution blocks of any number, width, stride, norm and pooling. `resnet12` of few-shot learning, and
`resnet18` and larger: residual networks for images of 84x84 pixels and more, which end in a mean over the last feature
map. Their BatchNorms train on the statistics of each batch, in the inner loop too, and are evaluated with
running ones; `norm_type: gn` or `in` makes images independent of each other.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from anml.config.model_args import ClassifierArgs, ConvnetArgs, Resnet12Args, Resnet18Args, Vgg16Args, named_part
from anml.errors import ConfigError
from anml.models.anml import AnmlEncoder
from anml.models.blocks import make_norm, output_width, sequential
from anml.models.heads import OutputLayer
from anml.models.meta_model import MetaModel


def convnet(args: ConvnetArgs, image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Return blocks `block1` ... `blockN`, each convolution, norm, ReLU (`conv2` ... once more), pool; a flattening."""
    blocks: dict[str, nn.Module] = {}
    channels = image_shape[0]
    for i in range(args.num_blocks):
        filters, norm, pool = (_of_block(column, i) for column in (args.num_filters, args.norm_type, args.pool_size))
        kernel, stride, padding = (_of_block(column, i) for column in (args.kernel_size, args.stride, args.padding))
        layers: dict[str, nn.Module] = {}
        for number in ["", *range(2, _of_block(args.num_conv_per_block, i) + 1)]:
            layers[f"conv{number}"] = nn.Conv2d(channels, filters, kernel, stride=stride, padding=padding)
            if norm:
                layers[f"norm{number}"] = make_norm(norm, filters)
            layers[f"relu{number}"] = nn.ReLU()
            channels = filters
        if pool:
            layers["pool"] = nn.MaxPool2d(pool)
        blocks[f"block{i + 1}"] = sequential(layers)
    return sequential(blocks | {"flatten": nn.Flatten()})


def _of_block(values: tuple[Any, ...], i: int) -> Any:
    return values[0 if len(values) == 1 else i]  # One value is that of all blocks.


def vgg16(args: Vgg16Args, image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Return the convolutions of VGG-16 as `block1` ... `block5`, [n, C, H, W] to [n, 25088].

    Simonyan & Zisserman 2015 (arXiv 1409.1556), table 1, D, with torchvision's mean over 7x7 parts of the last map.
    """
    widths, convolutions = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)
    plain = ConvnetArgs(num_blocks=5, num_filters=widths, num_conv_per_block=convolutions, norm_type=(args.norm_type,))
    blocks = dict(convnet(plain, image_shape).named_children())
    flatten = blocks.pop("flatten")
    return sequential(blocks | {"mean": nn.AdaptiveAvgPool2d(7), "flatten": flatten})


class Residual(nn.Module):
    """activation(body(x) + shortcut(x)), then maybe pooled."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Module, activation: nn.Module, pool: int = 0) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation
        self.pool = nn.MaxPool2d(pool) if pool else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.pool(self.activation(self.body(images) + self.shortcut(images)))


class MapMean(nn.Module):
    """The mean over a feature map: [n, C, h, w] to [n, C]."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean(dim=(2, 3))


def resnet12(args: Resnet12Args, image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Return `stage1` ... `stage4`, each one block of three 3x3 convolutions, pooled by 2.

    [n, C, H, W] to [n, channels of the last stage]. The ResNet-12 of few-shot learning (Lee et al. 2019, arXiv
    1904.03758), without its DropBlock.
    """
    stages: dict[str, nn.Module] = {}
    for number, (before, after) in enumerate(pairwise((image_shape[0], *args.channels)), 1):
        body = _conv(1, args.norm_type, before, after)
        for i in (2, 3):
            body |= {f"relu{i - 1}": nn.LeakyReLU(0.1)} | _conv(i, args.norm_type, after, after)
        shortcut = _conv(1, args.norm_type, before, after, kernel=1)
        stages[f"stage{number}"] = Residual(sequential(body), sequential(shortcut), nn.LeakyReLU(0.1), pool=2)
    return sequential(stages | {"mean": MapMean()})


def resnet18(args: Resnet18Args, image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Return `stem` and `stage1` ... `stage4`, of `args.blocks` blocks of two 3x3 convolutions, or of bottlenecks.

    [n, C, H, W] to [n, 8 * width], of bottlenecks [n, 32 * width] (He et al. 2016, arXiv 1512.03385, table 1, without
    the output layer; shortcuts to another width are 1x1 convolutions. ResNeXt and wide ones: as torchvision).
    """
    stem = _conv(1, args.norm_type, image_shape[0], args.width, kernel=7, stride=2)
    net: dict[str, nn.Module] = {
        "stem": sequential(stem | {"relu1": nn.ReLU(), "pool": nn.MaxPool2d(3, stride=2, padding=1)})
    }
    channels = args.width
    for number, count in enumerate(args.blocks, 1):
        width, blocks = args.width * 2 ** (number - 1), {}
        for i in range(count):
            stride = 2 if number > 1 and i == 0 else 1
            blocks[f"block{i + 1}"] = _residual_block(args, channels, width, stride)
            channels = width * (4 if args.base_width else 1)
        net[f"stage{number}"] = sequential(blocks)
    return sequential(net | {"mean": MapMean()})


def _residual_block(args: Resnet18Args, before: int, width: int, stride: int) -> Residual:
    norm, after = args.norm_type, width
    if args.base_width:
        after, inner = 4 * width, max(1, width * args.base_width // 64) * args.groups
        body = _conv(1, norm, before, inner, kernel=1) | {"relu1": nn.ReLU()}
        body |= _conv(2, norm, inner, inner, stride=stride, groups=args.groups) | {"relu2": nn.ReLU()}
        body |= _conv(3, norm, inner, after, kernel=1)
    else:
        body = _conv(1, norm, before, after, stride=stride) | {"relu1": nn.ReLU()} | _conv(2, norm, after, after)
    is_same = before == after and stride == 1
    shortcut = nn.Identity() if is_same else sequential(_conv(1, norm, before, after, kernel=1, stride=stride))
    return Residual(sequential(body), shortcut, nn.ReLU())


def _conv(
    number: int, norm: str | None, before: int, after: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> dict[str, nn.Module]:
    """Return `convN` and `normN`; a convolution has a bias only where no norm brings one."""
    conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=norm is None)
    return {f"conv{number}": conv, f"norm{number}": make_norm(norm, after)}


class Classifier(MetaModel):
    """Any encoder followed by any head, with the parameter names of higherANML: submodules `encoder` and `classifier`.

    The latter holds `classifier.linear`; or `classifier.mlp.0`, `classifier.mlp.2`, ...; or `classifier.metric`.
    """

    head_prefix = "classifier"

    def __init__(self, args: ClassifierArgs, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        encoder, head = named_part("encoder", args.encoder), named_part("classifier", args.classifier)
        self.encoder = encoder.build(args.encoder_record(), image_shape=image_shape)
        features = output_width(self.encoder, image_shape)
        self.classifier = head.build(args.head_record(), features=features)
        if isinstance(self.encoder, AnmlEncoder):
            self.gate_prefix = "encoder.nm"
        layers = [name for name, module in self.classifier.named_modules() if isinstance(module, OutputLayer)]
        if not layers:
            message = f"model_args: {args.classifier} has no nn.Linear (or MetricHead)"
            raise ConfigError(message)
        self.head_layer = f"classifier.{layers[-1]}".removesuffix(".")

    def modulate(self, images: torch.Tensor) -> torch.Tensor | None:
        return self.encoder.modulate(images) if isinstance(self.encoder, AnmlEncoder) else None

    def encode(self, images: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return self.encoder(images) if gate is None else self.encoder(images, gate)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(features)
