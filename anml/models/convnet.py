"""Encoder `convnet`: convolution blocks of any number, width, stride, norm and pooling."""

from typing import TypeVar

from torch import nn

from anml.config.model_args import ConvnetArgs
from anml.models.blocks import make_norm

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
