"""A stack of convolution blocks in the inner loop, differentiated by hand: PyTorch operations, no autograd, any device.

A block is conv -> InstanceNorm -> ReLU -> maybe max-pool. With N positions per channel, over which means are taken,

    c = w * x        n = (c - mean c) r,  r = (var c + eps)^-1/2        y = gamma n + beta        o = pool(relu(y))

the convolution's bias cancels in n: it is left out, and its gradient is the true one, zero. The map from each window of
y to o selects at most one position ("alive" where it is positive), so gradients at y are sparse: o-bar, placed there.
Writing P(v) = v - mean v - n mean(v n), q = gamma y-bar, bars for cotangents and dots for tangents:

    reverse              c-bar = r P(q)                          gamma-bar = sum y-bar n         beta-bar = sum y-bar
    tangent              n-dot = r P(c-dot),  s = mean(c-dot n), r-dot = -r^2 s
                         y-dot = gamma-dot n + gamma n-dot + beta-dot
    tangent of reverse   q-dot = gamma-dot y-bar + gamma y-bar-dot
                         c-bar-dot = -r s c-bar + r (q-dot - mean q-dot - n-dot mean(q n) - n mean(q-dot n + q n-dot))

and convolutions are bilinear, so their tangents are two convolutions. The last line, taken along a direction of the
weights, is a Hessian-vector product (Pearlmutter 1994, "Fast exact multiplication by the Hessian").
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn.functional import conv2d, instance_norm, max_pool2d, relu

from anml.models.blocks import Block, BlockWeights

_QUERY_PART = 16  # images


class BlockStack(Protocol):
    """The encoder's part of an episode.

    In order: `start`; `encode` and `descend` for every step; `encode_query`, `pull_query`; `push` and `pull` for every
    step in reverse; `gradients`.
    """

    blocks: list[Block]

    def start(self, steps: int) -> None:
        """Begin an episode of `steps` inner steps at the slow weights."""
        ...

    def encode(self, step: int, images: torch.Tensor) -> torch.Tensor:
        """Return the features [B, d] of images [B, C, H, W] under the fast weights of a step."""
        ...

    def descend(self, step: int, cotangent: torch.Tensor) -> None:
        """Take the SGD step, given the loss's gradient [B, d] at the features."""
        ...

    def encode_query(self, images: torch.Tensor) -> torch.Tensor:
        """Return features [Q, d] under the last fast weights."""
        ...

    def pull_query(self, cotangent: torch.Tensor) -> None:
        """Start the adjoint of the weights, given the meta loss's gradient [Q, d] at the query's features."""
        ...

    def push(self, step: int) -> torch.Tensor:
        """Return the adjoint [B, d] of the cotangent that `descend` was given."""
        ...

    def pull(self, step: int, cotangent: torch.Tensor) -> None:
        """Carry the adjoint of the weights over a step, given that of its features [B, d]."""
        ...

    def gradients(self) -> list[BlockWeights]:
        """Return the meta loss's gradients at the slow weights, block by block."""
        ...


@dataclass
class _Tape:
    """What the forward pass of one block leaves for the sweep; [B, C, N] with all N positions in one dimension."""

    inputs: torch.Tensor
    normed: torch.Tensor
    rate: torch.Tensor
    alive: torch.Tensor
    route: torch.Tensor | None
    shape: torch.Size
    normed_at: torch.Tensor = field(init=False)
    # By the reverse pass: cotangents of the convolution's output and (sparse) of the norm's, mean(q n).
    outer: torch.Tensor = field(init=False)
    sparse: torch.Tensor = field(init=False)
    slope: torch.Tensor = field(init=False)
    # By the tangent pass: tangents of the input, of n (dense, and at the picked positions), and r s.
    inputs_dot: torch.Tensor | None = field(init=False)
    normed_dot: torch.Tensor = field(init=False)
    normed_dot_at: torch.Tensor = field(init=False)
    relative: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.normed_at = self.at(self.normed)

    def at(self, dense: torch.Tensor) -> torch.Tensor:
        """Select [B, C, N] at the positions that max-pooling let through."""
        return dense if self.route is None else dense.gather(2, self.route)

    def place(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """Add sparse values to dense ones [B, C, N], in place."""
        return dense.add_(sparse) if self.route is None else dense.scatter_add_(2, self.route, sparse)


class TorchBlocks:
    """`BlockStack` in PyTorch operations."""

    def __init__(self, blocks: list[Block], learning_rate: float) -> None:
        self.blocks, self.rate = blocks, learning_rate

    def start(self, steps: int) -> None:
        """Begin an episode at the slow weights."""
        self.weights = [[block.weights for block in self.blocks]]
        self.tapes: list[list[_Tape]] = []

    def encode(self, step: int, images: torch.Tensor) -> torch.Tensor:
        """Run the blocks, keeping what the sweep needs."""
        tapes = []
        for block, weights in zip(self.blocks, self.weights[step], strict=True):
            images, tape = _forward(block, weights, images)
            tapes.append(tape)
        self.tapes.append(tapes)
        return images.flatten(1)

    def descend(self, step: int, cotangent: torch.Tensor) -> None:
        """Run the blocks backwards and take the SGD step."""
        following = []
        for block, weights, tape in self._backwards(step):
            gradient, inward = _reverse(block, weights, tape, cotangent, first=block is self.blocks[0])
            following.insert(0, weights.plus(-self.rate, gradient))
            cotangent = inward
        self.weights.append(following)

    def encode_query(self, images: torch.Tensor) -> torch.Tensor:
        """Run the blocks on the meta loss's images, where ordinary autograd is all that is needed."""
        self.query_leaves = [BlockWeights(*(w.requires_grad_() for w in block)) for block in self.weights[-1]]
        with torch.enable_grad():
            # In parts: tensors of all images at once are so large that malloc asks the system for new pages every time.
            self.query_part = len(images) if images.is_cuda else _QUERY_PART
            self.query_parts = [self._plain(part) for part in images.split(self.query_part)]
        return torch.cat(self.query_parts).detach()

    def pull_query(self, cotangent: torch.Tensor) -> None:
        """Run the blocks of the query backwards."""
        leaves = [leaf for block in self.query_leaves for leaf in block]
        flat = torch.autograd.grad(self.query_parts, leaves, cotangent.split(self.query_part))
        self.adjoint = [BlockWeights(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
        del self.query_parts, self.query_leaves

    def push(self, step: int) -> torch.Tensor:
        """Run the tangent pass along the adjoint: -a J lambda."""
        tangent = None
        for block, weights, direction, tape in zip(
            self.blocks, self.weights[step], self.adjoint, self.tapes[step], strict=True
        ):
            tangent = _tangent(block, weights, direction, tape, tangent)
        assert tangent is not None
        return -self.rate * tangent.flatten(1)

    def pull(self, step: int, cotangent: torch.Tensor) -> None:
        """Run the tangent of the reverse pass: lambda - a H lambda + J^T (features' adjoint)."""
        # Both at once: the pass is linear in (direction, cotangent's tangent), and the result is scaled by -a.
        cotangent = cotangent / -self.rate
        adjoint = []
        for (block, weights, tape), direction in zip(self._backwards(step), reversed(self.adjoint), strict=True):
            change, inward = _reverse_tangent(block, weights, direction, tape, cotangent)
            adjoint.insert(0, direction.plus(-self.rate, change))
            cotangent = inward
        self.adjoint = adjoint
        self.tapes.pop()

    def gradients(self) -> list[BlockWeights]:
        """Return what the sweep arrived at."""
        return self.adjoint

    def _plain(self, images: torch.Tensor) -> torch.Tensor:
        for block, (conv, scale, shift) in zip(self.blocks, self.query_leaves, strict=True):
            images = conv2d(images, conv, None, block.conv.stride, block.conv.padding)
            images = relu(instance_norm(images, weight=scale, bias=shift, eps=block.norm.eps))
            images = max_pool2d(images, block.pool) if block.pool else images
        return images.flatten(1)

    def _backwards(self, step: int) -> list[tuple[Block, BlockWeights, _Tape]]:
        return list(zip(self.blocks, self.weights[step], self.tapes[step], strict=True))[::-1]


def _forward(block: Block, weights: BlockWeights, inputs: torch.Tensor) -> tuple[torch.Tensor, _Tape]:
    outputs = conv2d(inputs, weights.conv, None, block.conv.stride, block.conv.padding)
    flat = outputs.flatten(2)
    variance, mean = torch.var_mean(flat, 2, correction=0, keepdim=True)
    rate = (variance + block.norm.eps).rsqrt()
    normed = (flat - mean) * rate
    scaled = torch.addcmul(weights.shift[:, None], normed, weights.scale[:, None]).view_as(outputs)
    route = None
    if block.pool:
        # Pooled before the ReLU: it selects the same positions wherever the result is positive, and is 4 times less.
        scaled, route = max_pool2d(scaled, block.pool, return_indices=True)
        route = route.flatten(2)
    alive = (scaled > 0).flatten(2)
    return relu(scaled), _Tape(inputs, normed, rate, alive, route, outputs.shape)


def _reverse(
    block: Block, weights: BlockWeights, tape: _Tape, cotangent: torch.Tensor, first: bool
) -> tuple[BlockWeights, torch.Tensor]:
    """Return the weights' gradient and the input's (for the first block: nothing of use)."""
    tape.sparse = cotangent.view_as(tape.alive) * tape.alive
    count = tape.normed.shape[2]
    total = tape.sparse.sum(2, keepdim=True)
    slope = (tape.sparse * tape.normed_at).sum(2, keepdim=True)
    pull = weights.scale[:, None] * tape.rate
    tape.slope = weights.scale[:, None] * slope / count
    outer = torch.addcmul(-pull * total / count, tape.normed, -tape.rate * tape.slope)
    tape.outer = tape.place(outer, pull * tape.sparse).view(tape.shape)
    gradient = BlockWeights(_weight_gradient(block, tape.inputs, tape.outer), slope.sum((0, 2)), total.sum((0, 2)))
    return gradient, cotangent if first else _input_gradient(block, tape.inputs, weights.conv, tape.outer)


def _tangent(
    block: Block, weights: BlockWeights, direction: BlockWeights, tape: _Tape, tangent: torch.Tensor | None
) -> torch.Tensor:
    """Return the output's tangent, given the input's (None: zero) and a direction of the weights."""
    tape.inputs_dot = tangent
    inputs, kernel = tape.inputs, direction.conv
    if tangent is not None:
        inputs, kernel = torch.cat([inputs, tangent], 1), torch.cat([kernel, weights.conv], 1)
    flat = conv2d(inputs, kernel, None, block.conv.stride, block.conv.padding).flatten(2)
    along = (flat * tape.normed).mean(2, keepdim=True)
    tape.relative = tape.rate * along
    tape.normed_dot = torch.addcmul(flat - flat.mean(2, keepdim=True), tape.normed, -along).mul_(tape.rate)
    tape.normed_dot_at = tape.at(tape.normed_dot)
    scaled = direction.scale[:, None] * tape.normed_at + weights.scale[:, None] * tape.normed_dot_at
    outputs = (scaled + direction.shift[:, None]) * tape.alive
    height = tape.shape[2] // max(block.pool, 1)
    return outputs.unflatten(2, (height, -1))


def _reverse_tangent(
    block: Block, weights: BlockWeights, direction: BlockWeights, tape: _Tape, cotangent: torch.Tensor
) -> tuple[BlockWeights, torch.Tensor]:
    """Return the tangents of what `_reverse` returned, given that of its cotangent."""
    sparse_dot = cotangent.view_as(tape.alive) * tape.alive
    count = tape.normed.shape[2]
    scale, scale_dot = weights.scale[:, None], direction.scale[:, None]
    force = scale_dot * tape.sparse + scale * sparse_dot
    turn = sparse_dot * tape.normed_at + tape.sparse * tape.normed_dot_at
    slope = (force * tape.normed_at + scale * tape.sparse * tape.normed_dot_at).sum(2, keepdim=True) / count
    outer = torch.addcmul(-force.sum(2, keepdim=True) / count, tape.normed_dot, -tape.slope)
    outer = tape.place(outer.addcmul_(tape.normed, -slope), force).mul_(tape.rate)
    outer = outer.view(tape.shape).addcmul_(tape.outer, -tape.relative[..., None])
    kernel = _weight_gradient(block, tape.inputs, outer)
    if tape.inputs_dot is None:
        return BlockWeights(kernel, turn.sum((0, 2)), sparse_dot.sum((0, 2))), cotangent
    kernel = kernel + _weight_gradient(block, tape.inputs_dot, tape.outer)
    kernels, outers = torch.cat([weights.conv, direction.conv]), torch.cat([outer, tape.outer], 1)
    inward = _input_gradient(block, tape.inputs, kernels, outers)
    return BlockWeights(kernel, turn.sum((0, 2)), sparse_dot.sum((0, 2))), inward


def _weight_gradient(block: Block, inputs: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    return _convolution_backward(block, outer, inputs, block.conv.weight, (False, True, False))[1]


def _input_gradient(block: Block, inputs: torch.Tensor, kernel: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    return _convolution_backward(block, outer, inputs, kernel, (True, False, False))[0]


def _convolution_backward(
    block: Block, outer: torch.Tensor, inputs: torch.Tensor, kernel: torch.Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[torch.Tensor, ...]:
    stride, padding = block.conv.stride, block.conv.padding
    return torch.ops.aten.convolution_backward(
        outer, inputs, kernel, None, stride, padding, (1, 1), False, (0, 0), 1, wanted
    )
