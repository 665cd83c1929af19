"""Convolution blocks for GPUs: `BlockStack` in Triton kernels and matrix products.

A pass over a block is one kernel (triton_kernels.py) and one matrix product for each convolution in its formulas. The
product of a convolution of few images has a long inner dimension and few outputs: it is cut into parts, which a GPU
does side by side. All weights of a step lie in one buffer.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
from torch.nn.functional import pad

from anml.meta import triton_kernels as kernels
from anml.models.blocks import Block, BlockWeights

# A product of at least so many columns has enough outputs for a whole GPU.
_MANY_COLUMNS = 2048
_MOST_PARTS, _SHORTEST_PART = 16, 128
_TILE = 256  # positions of a program at least


class _Convolution(NamedTuple):
    kernel: int
    stride: int
    padding: int

    def edge(self, before: int) -> int:
        """Return the edge of what the convolution makes of an image with another edge."""
        return (before + 2 * self.padding - self.kernel) // self.stride + 1


class _Layer(NamedTuple):
    """Sizes of a block at one size of image. `following` reads its output: the next convolution, of one tap at last."""

    channels: int
    height: int
    width: int
    pool: int
    following: _Convolution
    is_last: bool

    @property
    def windows(self) -> int:
        return (self.height // self.pool) * (self.width // self.pool)

    @property
    def columns(self) -> int:
        """Positions of the following convolution for each image."""
        return math.prod(self.following.edge(edge // self.pool) for edge in (self.height, self.width))

    @property
    def constants(self) -> dict[str, Any]:
        """What all kernels are compiled for."""
        kernel, stride, padding = self.following
        block = triton.next_power_of_2(self.height * self.width)
        rows = max(_TILE // block, 1)
        sizes = {"HEIGHT": self.height, "WIDTH": self.width, "POOL": self.pool, "BLOCK": block, "ROWS": rows}
        sizes |= {"KERNEL": kernel, "STRIDE": stride, "PAD": padding, "IS_LAST": self.is_last}
        return sizes | {"num_warps": min(max(rows * block // 256, 1), 8)}

    def outputs(self, like: torch.Tensor, images: int) -> torch.Tensor:
        """Return memory for the output: features, or columns for the next convolution."""
        shape = (self.channels * self.following.kernel**2, images * self.columns)
        if self.is_last:
            shape = (images, self.channels * self.columns)
        # Kernels write nothing where a convolution reads its padding.
        return like.new_zeros(shape) if self.following.padding else like.new_empty(shape)

    def run(self, kernel: Any, *arguments: torch.Tensor, images: int, **constants: Any) -> None:
        """Launch a kernel over the block's channels of some images."""
        constants |= self.constants
        programs = triton.cdiv(self.channels * images, constants["ROWS"])
        kernel[(programs,)](*arguments, self.channels, images, **constants)

    def run_changing(
        self, kernel: Any, *arguments: torch.Tensor, affine: torch.Tensor, images: int, factor: float
    ) -> None:
        """Launch a kernel that ends in `_change`, so that it adds to `affine`."""
        changed = affine if images == 1 else affine.new_empty(*affine.shape, images)
        self.run(kernel, *arguments, changed, images=images, FACTOR=factor, IS_ADDED=images == 1)
        if images > 1:
            affine.add_(changed.sum(2))


@dataclass
class _Tape:
    """What the passes over one block leave for those that follow; in the layouts of triton_kernels.py."""

    inputs: torch.Tensor
    conv: torch.Tensor
    stats: torch.Tensor
    picks: torch.Tensor
    grad_norm: torch.Tensor = field(init=False)
    grad_conv: torch.Tensor = field(init=False)
    inputs_tangent: torch.Tensor | None = field(init=False)
    conv_tangent: torch.Tensor = field(init=False)

    @property
    def images(self) -> int:
        return self.stats.shape[2]

    @property
    def forward(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.conv, self.stats, self.picks


class TritonBlocks:
    """`BlockStack` (conv_blocks.py) on a GPU, float32 or float64; on a CPU in Triton's interpreter."""

    def __init__(self, blocks: list[Block], learning_rate: float) -> None:
        self.blocks, self.lr = blocks, learning_rate

    def start(self, steps: int) -> None:
        slow = [part.flatten() for block in self.blocks for part in block.weights]
        self.weights = slow[0].new_empty(steps + 1, sum(len(part) for part in slow))
        torch.cat(slow, out=self.weights[0])
        self.tapes: list[list[_Tape]] = []

    def encode(self, step: int, images: torch.Tensor) -> torch.Tensor:
        features, tapes = self._forward(self.weights[step], images)
        self.tapes.append(tapes)
        return features

    def descend(self, step: int, grad_out: torch.Tensor) -> None:
        self.weights[step + 1].copy_(self.weights[step])
        self._vjp(self.weights[step], self.tapes[step], grad_out, self.weights[step + 1], -self.lr)

    def encode_query(self, images: torch.Tensor) -> torch.Tensor:
        features, self.query_tapes = self._forward(self.weights[-1], images)
        return features

    def query_vjp(self, grad_out: torch.Tensor) -> None:
        self.adjoint = torch.zeros_like(self.weights[-1])
        self._vjp(self.weights[-1], self.query_tapes, grad_out, self.adjoint, 1.0)
        del self.query_tapes

    def jvp(self, step: int) -> torch.Tensor:
        tangent = None
        for (layer, tape, kernel, affine), (direction, affine_direction) in zip(
            self._passes(self.weights[step], self.tapes[step]), self._views(self.adjoint), strict=True
        ):
            tape.inputs_tangent = tangent
            tape.conv_tangent = _product([(direction, tape.inputs)] + ([] if tangent is None else [(kernel, tangent)]))
            tangent = layer.outputs(tape.conv, tape.images)
            layer.run(
                kernels.jvp, *tape.forward, tape.conv_tangent, tangent, affine, affine_direction,
                images=tape.images, WINDOWS=triton.next_power_of_2(layer.windows),
            )  # fmt: skip
        assert tangent is not None
        return -self.lr * tangent

    def carry_adjoint(self, step: int, features_adjoint: torch.Tensor) -> None:
        # As in TorchBlocks: the pass is linear in (direction, tangent of grad_out), and the result is scaled by -lr.
        grad_out_tangent = features_adjoint / -self.lr
        passes = zip(self._passes(self.weights[step], self.tapes.pop()), self._views(self.adjoint), strict=True)
        for (layer, tape, kernel, affine), (direction, affine_direction) in reversed(list(passes)):
            tangent = torch.empty_like(tape.conv)
            layer.run_changing(
                kernels.vjp_tangent, *tape.forward, tape.conv_tangent, tape.grad_norm, tape.grad_conv,
                grad_out_tangent, tangent, affine, affine_direction,
                affine=affine_direction, images=tape.images, factor=-self.lr,
            )  # fmt: skip
            if tape.inputs_tangent is not None:
                grad_out_tangent = (kernel.T @ tangent).addmm_(direction.T, tape.grad_conv)
                direction.addmm_(tape.grad_conv, tape.inputs_tangent.T, alpha=-self.lr)
            direction.addmm_(tangent, tape.inputs.T, alpha=-self.lr)

    def gradients(self) -> list[BlockWeights]:
        return [
            BlockWeights(kernel.view_as(block.conv.weight), *affine)
            for block, (kernel, affine) in zip(self.blocks, self._views(self.adjoint), strict=True)
        ]

    def _forward(self, weights: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, list[_Tape]]:
        self.layers = _layers(self.blocks, images)
        inputs, tapes, count = _columns(images, self.blocks[0]), [], len(images)
        for layer, block, (kernel, affine) in zip(self.layers, self.blocks, self._views(weights), strict=True):
            conv = _product([(kernel, inputs)])
            stats = conv.new_empty(2, layer.channels, count)
            picks = conv.new_empty(layer.channels, count, layer.windows, dtype=torch.int32)
            tapes.append(_Tape(inputs, conv, stats, picks))
            inputs = layer.outputs(conv, count)
            layer.run(
                kernels.normalise, conv, stats, picks, inputs, affine,
                images=count, EPS=block.norm.eps, WINDOWS=triton.next_power_of_2(layer.windows),
            )  # fmt: skip
        return inputs, tapes

    def _vjp(
        self, weights: torch.Tensor, tapes: list[_Tape], grad_out: torch.Tensor, changed: torch.Tensor, factor: float
    ) -> None:
        """Add `factor` times the gradient to `changed`."""
        passes = zip(self._passes(weights, tapes), self._views(changed), strict=True)
        for (layer, tape, kernel, affine), (changed_kernel, changed_affine) in reversed(list(passes)):
            tape.grad_norm, tape.grad_conv = torch.empty_like(tape.conv), torch.empty_like(tape.conv)
            layer.run_changing(
                kernels.vjp, *tape.forward, grad_out, tape.grad_norm, tape.grad_conv, affine,
                affine=changed_affine, images=tape.images, factor=factor,
            )  # fmt: skip
            changed_kernel.addmm_(tape.grad_conv, tape.inputs.T, alpha=factor)
            if tape is not tapes[0]:
                grad_out = kernel.T @ tape.grad_conv

    def _passes(
        self, weights: torch.Tensor, tapes: list[_Tape]
    ) -> list[tuple[_Layer, _Tape, torch.Tensor, torch.Tensor]]:
        views = self._views(weights)
        return [(layer, tape, *view) for layer, tape, view in zip(self.layers, tapes, views, strict=True)]

    def _views(self, weights: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return kernels [out, in * taps] and affine parts [2, out] of all blocks in one buffer."""
        sizes = [size for block in self.blocks for size in (block.conv.weight.numel(), 2 * block.conv.out_channels)]
        parts = weights.split(sizes)
        return [
            (kernel.view(block.conv.out_channels, -1), affine.view(2, -1))
            for block, kernel, affine in zip(self.blocks, parts[::2], parts[1::2], strict=True)
        ]


def _layers(blocks: list[Block], images: torch.Tensor) -> list[_Layer]:
    layers: list[_Layer] = []
    height, width = images.shape[2:]
    convolutions = [*map(_convolution, blocks), _Convolution(1, 1, 0)]
    for block, convolution, following in zip(blocks, convolutions, convolutions[1:], strict=False):
        height, width, pool = convolution.edge(height), convolution.edge(width), max(block.pool, 1)
        layers.append(_Layer(block.conv.out_channels, height, width, pool, following, block is blocks[-1]))
        height, width = height // pool, width // pool
    return layers


def _convolution(block: Block) -> _Convolution:
    padding = block.conv.padding[0]
    assert isinstance(padding, int)
    return _Convolution(block.conv.kernel_size[0], block.conv.stride[0], padding)


def _columns(images: torch.Tensor, block: Block) -> torch.Tensor:
    """Return what the first convolution reads of images [B, C, H, W]: [C * taps, B * positions]."""
    kernel, stride, padding = _convolution(block)
    padded = pad(images, (padding,) * 4) if padding else images
    windows = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)
    return windows.permute(1, 4, 5, 0, 2, 3).reshape(images.shape[1] * kernel**2, -1)


def _product(factors: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the sum of all left [n, k] @ right [k, m]."""
    (left, right), *others = factors
    parts = _parts(*right.shape)
    if parts == 1:
        product = left @ right
        for left, right in others:
            product.addmm_(left, right)
        return product
    products = left.new_empty(len(factors), parts, len(left), right.shape[1])
    for (left, right), out in zip(factors, products, strict=True):
        torch.bmm(left.unflatten(1, (parts, -1)).transpose(0, 1), right.unflatten(0, (parts, -1)), out=out)
    return products.sum((0, 1))


def _parts(inner: int, columns: int) -> int:
    """Return into how many parts a product's inner dimension is cut."""
    most = 1 if columns >= _MANY_COLUMNS else min(_MOST_PARTS, inner // _SHORTEST_PART)
    return next((parts for parts in range(most, 1, -1) if inner % parts == 0), 1)
