"""Convolution blocks that the networks are built of."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from anml.errors import ConfigError


class ConvBlock(nn.Module):
    """Convolution 3x3 without padding, InstanceNorm (affine), ReLU, and maybe 2x2 max-pooling.

    Parameter names are those of the published checkpoints: `conv.weight`, `norm.bias`, ...
    """

    def __init__(self, in_channels: int, out_channels: int, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3)
        self.norm = nn.InstanceNorm2d(out_channels, affine=True)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, in_channels, h, w] to [n, out_channels, (h - 2) or (h - 2) // 2, ...]."""
        return self.pool(self.relu(self.norm(self.conv(images))))


def conv_stack(in_channels: int, channels: int, blocks: int, pool_last: bool) -> nn.Sequential:
    """Return `convBlock1` ... `convBlockN`, each pooled but (unless `pool_last`) the last, and a flattening."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, blocks + 1):
        pool = pool_last or number < blocks
        layers[f"convBlock{number}"] = ConvBlock(in_channels if number == 1 else channels, channels, pool)
    layers["flatten"] = nn.Flatten()
    return nn.Sequential(layers)


def output_width(net: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return d of a network [n, C, H, W] -> [n, d]. Raises ConfigError when the images are too small for it."""
    net.eval()  # A BatchNorm would take this probe into its running statistics.
    try:
        with torch.no_grad():
            return net(torch.zeros(1, *image_shape)).shape[1]
    except (RuntimeError, ValueError) as error:
        message = f"model_args: the network does not fit images of {image_shape[1]}x{image_shape[2]} pixels: {error}"
        raise ConfigError(message) from None
    finally:
        net.train()


class BlockWeights(NamedTuple):
    """Weights of one block, or a direction or gradient of their shape: [out, in, k, k], [out], [out]."""

    conv: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor

    def plus(self, factor: float, other: "BlockWeights") -> "BlockWeights":
        """Return self + factor * other."""
        return BlockWeights(*(torch.add(a, b, alpha=factor) for a, b in zip(self, other, strict=True)))


class Block(NamedTuple):
    """What a block consists of; pool is the window's edge, 0 for none."""

    name: str
    conv: nn.Conv2d
    norm: nn.InstanceNorm2d
    pool: int

    @property
    def weights(self) -> BlockWeights:
        """The slow weights, detached."""
        return BlockWeights(self.conv.weight.detach(), self.norm.weight.detach(), self.norm.bias.detach())


def find_blocks(modules: Iterable[tuple[str, nn.Module]]) -> list[Block] | None:
    """Return the blocks that an encoder's named children are, or None when it is made of anything else."""
    blocks = []
    for name, module in modules:
        if isinstance(module, nn.Flatten):
            continue
        parts = dict(module.named_children())
        pool = parts.pop("pool", None)
        edge = pool.kernel_size if isinstance(pool, nn.MaxPool2d) else 0
        conv, norm = parts.get("conv"), parts.get("norm")
        if set(parts) != {"conv", "norm", "relu"} or not isinstance(conv, nn.Conv2d):
            return None
        if not isinstance(norm, nn.InstanceNorm2d) or not isinstance(edge, int):
            return None
        blocks.append(Block(name, conv, norm, edge))
    return blocks
