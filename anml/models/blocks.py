"""Convolution blocks that the networks are built of."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from anml.errors import ConfigError


def sequential(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """Return layers in a row, each with its name."""
    return nn.Sequential(OrderedDict(layers))


class ConvBlock(nn.Module):
    """Convolution 3x3 without padding, InstanceNorm (affine), ReLU, and maybe 2x2 max-pooling: edge s to (s - 2) // 2.

    Parameter names are those of the published checkpoints: `conv.weight`, `norm.bias`, ...
    """

    def __init__(self, in_channels: int, out_channels: int, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3)
        self.norm = nn.InstanceNorm2d(out_channels, affine=True)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.pool(self.relu(self.norm(self.conv(images))))


def automatic_blocks(size: int) -> tuple[int, bool]:
    """Return how many blocks suit images of `size` pixels, and whether the last one is to be pooled.

    As many as bring the edge of the feature map, a pooled block taking s to (s - 2) // 2, down to 4 or less; the last
    block stays unpooled where that suffices. With 256 channels: 28 pixels, 3 blocks, 3x3 unpooled, 2304 features (as
    published); 84 pixels, 4 blocks, 3x3 pooled, 2304 features; of any size, 2x2 to 4x4, 1024 to 4096 features.
    """
    blocks, edge, largest = 1, size, 4
    while (edge - 2) // 2 > largest:
        blocks, edge = blocks + 1, (edge - 2) // 2
    return blocks, edge - 2 > largest


def conv_stack(
    image_shape: tuple[int, int, int], channels: int, blocks: int | None, pool_last: bool | None
) -> nn.Sequential:
    """Return `convBlock1` ... `convBlockN`, each pooled but (unless `pool_last`) the last, and a flattening.

    Without `blocks` both follow from the images' size (`automatic_blocks`); with them, a last block of which nothing is
    said is unpooled.
    """
    if blocks is None:
        blocks, pool = automatic_blocks(image_shape[1])
        pool_last = pool if pool_last is None else pool_last
    layers: dict[str, nn.Module] = {}
    for number in range(1, blocks + 1):
        in_channels = image_shape[0] if number == 1 else channels
        layers[f"convBlock{number}"] = ConvBlock(in_channels, channels, bool(pool_last) or number < blocks)
    return sequential(layers | {"flatten": nn.Flatten()})


def make_norm(kind: str | None, channels: int) -> nn.Module:
    """Return a norm by its name in configs: `in`, `bn`, `gn`, or none."""
    if kind is None:
        return nn.Identity()
    if kind == "in":
        return nn.InstanceNorm2d(channels, affine=True)
    # One group, as in higherANML: it divides every number of channels.
    return nn.BatchNorm2d(channels) if kind == "bn" else nn.GroupNorm(1, channels)


def has_batch_norm(net: nn.Module) -> bool:
    """Say whether an image's features depend on the images beside it, in training."""
    return any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def output_width(net: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Return d of a network [n, C, H, W] -> [n, d]. Raises ConfigError when the images are too small for it."""
    net.eval()  # A BatchNorm would take this probe into its running statistics.
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(_refuse_single_pixel) for norm in norms]
    try:
        with torch.no_grad():
            shape = net(torch.zeros(1, *image_shape)).shape
    except (RuntimeError, ValueError) as error:
        message = f"model_args: the network does not fit images of {image_shape[1]}x{image_shape[2]} pixels: {error}"
        raise ConfigError(message) from None
    finally:
        net.train()
        for hook in hooks:
            hook.remove()
    if len(shape) != 2:
        message = f"model_args: the encoder returns {list(shape)} for one image; features are [1, d]: flatten them"
        raise ConfigError(message)
    return shape[1]


def _refuse_single_pixel(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Find out now what torch refuses only when it trains on a batch of one image."""
    if inputs[0].shape[2:].numel() == 1:
        message = "a BatchNorm would see a single pixel, which is nothing to normalise in a batch of one"
        raise ValueError(message)


class BlockWeights(NamedTuple):
    """Weights of one block, or a direction or gradient of their shape: [out, in, k, k], [out], [out]."""

    conv: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor

    def plus(self, factor: float, other: "BlockWeights") -> "BlockWeights":
        return BlockWeights(*(torch.add(a, b, alpha=factor) for a, b in zip(self, other, strict=True)))


_LAYERS = ["conv", "norm", "relu", "pool"]
# What a block and its layers are, exactly.
_KINDS = ((ConvBlock, nn.Sequential), (nn.Conv2d,), (nn.InstanceNorm2d,), (nn.ReLU,), (nn.MaxPool2d, nn.Identity))


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
        conv, norm, relu, pool = (parts.get(part, nn.Identity()) for part in _LAYERS)
        edge = pool.kernel_size if isinstance(pool, nn.MaxPool2d) else 0
        # By exact types and in this order: whatever else a user's encoder may be computes something else.
        is_ordered = type(module) is ConvBlock or list(parts) in (_LAYERS, _LAYERS[:3])
        kinds = [type(module), *map(type, (conv, norm, relu, pool))]
        if not is_ordered or any(kind not in allowed for kind, allowed in zip(kinds, _KINDS, strict=True)):
            return None
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.InstanceNorm2d)
        plain = (conv.dilation, conv.groups, conv.padding_mode, norm.affine, norm.track_running_stats)
        is_plain_pool = edge == 0 or (pool.stride, pool.padding, pool.dilation, pool.ceil_mode) == (edge, 0, 1, False)
        is_plain = plain == ((1, 1), 1, "zeros", True, False) and is_plain_pool
        if not is_plain or not isinstance(edge, int) or isinstance(conv.padding, str):
            return None
        blocks.append(Block(name, conv, norm, edge))
    return blocks
