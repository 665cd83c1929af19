"""Convolutions as matrix products, for lanes on a GPU.

Each lane has its own weights. cuDNN does this as one convolution of many groups, of one image each, and slowly. As
products of weights [lanes, out, in * taps] and columns [lanes, in * taps, positions] it is one call of cuBLAS.
"""

import copy

import torch
from torch import nn
from torch.nn.functional import pad

from anml.models.meta_model import MetaModel

# Of the columns that are written at once, where no gradient has to keep them.
_MOST_BYTES = 2**28


class ProductConv2d(nn.Conv2d):
    """A convolution of images [n, in, height, width], without groups or dilation."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        edge_y, edge_x = (int(edge) for edge in self.padding)
        images = pad(input, (edge_x, edge_x, edge_y, edge_y))
        height, width = self._extents(images)
        bytes_each = images.itemsize * height * width * self.weight[0].numel()
        parts = [self._convolve(part, height, width) for part in images.split(max(1, _MOST_BYTES // bytes_each))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _extents(self, images: torch.Tensor) -> tuple[int, int]:
        sizes = zip(images.shape[2:], self.kernel_size, self.stride, strict=True)
        height, width = ((size - kernel) // stride + 1 for size, kernel, stride in sizes)
        return height, width

    def _convolve(self, images: torch.Tensor, height: int, width: int) -> torch.Tensor:
        (taps_y, taps_x), (stride_y, stride_x) = self.kernel_size, self.stride
        taps = [
            images[:, :, y : y + stride_y * height : stride_y, x : x + stride_x * width : stride_x]
            for y in range(taps_y)
            for x in range(taps_x)
        ]
        columns = torch.stack(taps, dim=2).flatten(1, 2).flatten(2)
        # Not `@`: it would rather copy the columns than call for a batch.
        outputs = torch.bmm(self.weight.flatten(1).expand(len(images), -1, -1), columns)
        outputs = outputs if self.bias is None else outputs + self.bias[:, None]
        return outputs.unflatten(2, (height, width))


def use_products(model: MetaModel) -> MetaModel:
    """Return a copy of a model whose convolutions are matrix products, as far as they can be."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if type(layer) is nn.Conv2d and layer.groups == 1 and layer.dilation == (1, 1) and is_zero_padded(layer):
            layer.__class__ = ProductConv2d  # All that it holds stays as it is.
    return model


def is_zero_padded(layer: nn.Conv2d) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
