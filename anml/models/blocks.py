"""Convolution blocks that the networks are built of."""

from collections import OrderedDict

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
