"""A stack of convolution blocks in the inner loop, differentiated by hand, on any device.

A block is conv -> InstanceNorm -> ReLU -> maybe max-pool. With N positions per channel, over which means are taken,

    c = w * x        n = (c - mean c) r,  r = (var c + eps)^-1/2        y = gamma n + beta        o = pool(relu(y))

the convolution's bias cancels in n: it is left out, and its gradient is the true one, zero. The map from each window of
y to o selects at most one position ("alive" where it is positive), so gradients at y are sparse: o-bar, put there.
Writing P(v) = v - mean v - n mean(v n), q = gamma y-bar, r = inv_std, bars for gradients and dots for tangents:

    vjp                  c-bar = r P(q)                          gamma-bar = sum y-bar n         beta-bar = sum y-bar
    jvp                  n-dot = r P(c-dot),  s = mean(c-dot n), r-dot = -r^2 s
                         y-dot = gamma-dot n + gamma n-dot + beta-dot
    tangent of the vjp   q-dot = gamma-dot y-bar + gamma y-bar-dot
                         c-bar-dot = -r s c-bar + r (q-dot - mean q-dot - n-dot mean(q n) - n mean(q-dot n + q n-dot))

and convolutions are bilinear, so their tangents are two convolutions. The last line, taken along a direction of the
weights, is a Hessian-vector product (Pearlmutter 1994, "Fast exact multiplication by the Hessian").
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch.nn.functional import conv2d, instance_norm, max_pool2d, relu

from anml.models.blocks import Block, BlockWeights

_QUERY_PART = 16  # images


class BlockStack(Protocol):
    """The encoder's part of an episode.

    In order: `start`; `encode` and `descend` for every step; `encode_query`, `query_vjp`; `jvp` and `carry_adjoint` for
    every step in reverse; `gradients`.
    """

    blocks: list[Block]

    def start(self, steps: int) -> None:
        """Begin an episode of `steps` inner steps at the slow weights."""
        ...

    def encode(self, step: int, images: torch.Tensor) -> torch.Tensor:
        """Return the features [B, d] of images [B, C, H, W] under the fast weights of a step; keep what vjps need."""
        ...

    def descend(self, step: int, grad_out: torch.Tensor) -> None:
        """Take the SGD step, given the loss's gradient [B, d] at the features."""
        ...

    def encode_query(self, images: torch.Tensor) -> torch.Tensor:
        """Return features [Q, d] under the last fast weights."""
        ...

    def query_vjp(self, grad_out: torch.Tensor) -> None:
        """Start the adjoint of the weights, given the meta loss's gradient [Q, d] at the query's features."""
        ...

    def jvp(self, step: int) -> torch.Tensor:
        """Return the adjoint [B, d] of the gradient that `descend` was given: -lr J lambda."""
        ...

    def carry_adjoint(self, step: int, features_adjoint: torch.Tensor) -> None:
        """Carry the adjoint of the weights over a step, given that of its features [B, d].

        lambda becomes lambda - lr H lambda + J^T features_adjoint, H the derivative of `descend`'s gradient.
        """
        ...

    def gradients(self) -> list[BlockWeights]:
        """Return the meta loss's gradients at the slow weights, block by block."""
        ...


@dataclass
class _Tape:
    """What the passes over one block at one step leave for those that follow.

    [B, C, N], all N positions in one dimension. `normed` is n, `inv_std` r; `picked` are the positions that max-pooling
    let through, None for all.
    """

    inputs: torch.Tensor
    normed: torch.Tensor
    inv_std: torch.Tensor
    alive: torch.Tensor
    picked: torch.Tensor | None
    shape: torch.Size
    normed_picked: torch.Tensor = field(init=False)
    # Of the vjp: gradients at the convolution's output (dense) and the norm's (at the picked positions), mean(q n).
    grad_conv: torch.Tensor = field(init=False)
    grad_norm: torch.Tensor = field(init=False)
    mean_qn: torch.Tensor = field(init=False)
    # Of the jvp: tangents of the input and of n (dense, and at the picked positions), and r s.
    inputs_tangent: torch.Tensor | None = field(init=False)
    normed_tangent: torch.Tensor = field(init=False)
    normed_tangent_picked: torch.Tensor = field(init=False)
    inv_std_s: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.normed_picked = self.pick(self.normed)

    def pick(self, dense: torch.Tensor) -> torch.Tensor:
        return dense if self.picked is None else dense.gather(2, self.picked)

    def add_picked(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """Add values of the picked positions to dense ones [B, C, N], in place."""
        return dense.add_(sparse) if self.picked is None else dense.scatter_add_(2, self.picked, sparse)


class TorchBlocks:
    """`BlockStack` in PyTorch operations."""

    def __init__(self, blocks: list[Block], learning_rate: float) -> None:
        self.blocks, self.lr = blocks, learning_rate

    def start(self, steps: int) -> None:
        self.weights = [[block.weights for block in self.blocks]]
        self.tapes: list[list[_Tape]] = []

    def encode(self, step: int, images: torch.Tensor) -> torch.Tensor:
        tapes = []
        for block, weights in zip(self.blocks, self.weights[step], strict=True):
            images, tape = _forward(block, weights, images)
            tapes.append(tape)
        self.tapes.append(tapes)
        return images.flatten(1)

    def descend(self, step: int, grad_out: torch.Tensor) -> None:
        following = []
        for block, weights, tape in self._backwards(step):
            gradient = _vjp(block, weights, tape, grad_out)
            following.insert(0, weights.plus(-self.lr, gradient))
            if block is not self.blocks[0]:
                grad_out = _convolution_vjp(block, tape.grad_conv, tape.inputs, weights.conv, "inputs")
        self.weights.append(following)

    def encode_query(self, images: torch.Tensor) -> torch.Tensor:
        # Nothing second-order is asked of the query: ordinary autograd does.
        self.query_leaves = [BlockWeights(*(w.requires_grad_() for w in block)) for block in self.weights[-1]]
        with torch.enable_grad():
            # In parts: tensors of all images at once are so large that malloc asks the system for new pages every time.
            self.query_part = len(images) if images.is_cuda else _QUERY_PART
            self.query_parts = [self._plain(part) for part in images.split(self.query_part)]
        return torch.cat(self.query_parts).detach()

    def query_vjp(self, grad_out: torch.Tensor) -> None:
        leaves = [leaf for block in self.query_leaves for leaf in block]
        flat = torch.autograd.grad(self.query_parts, leaves, grad_out.split(self.query_part))
        self.adjoint = [BlockWeights(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
        del self.query_parts, self.query_leaves

    def jvp(self, step: int) -> torch.Tensor:
        tangent = None
        for block, weights, direction, tape in zip(
            self.blocks, self.weights[step], self.adjoint, self.tapes[step], strict=True
        ):
            tangent = _jvp(block, weights, direction, tape, tangent)
        assert tangent is not None
        return -self.lr * tangent.flatten(1)

    def carry_adjoint(self, step: int, features_adjoint: torch.Tensor) -> None:
        # Both terms at once: the pass is linear in (direction, tangent of grad_out), and the result is scaled by -lr.
        grad_out_tangent = features_adjoint / -self.lr
        adjoint = []
        for (block, weights, tape), direction in zip(self._backwards(step), reversed(self.adjoint), strict=True):
            change, grad_out_tangent = _vjp_tangent(block, weights, direction, tape, grad_out_tangent)
            adjoint.insert(0, direction.plus(-self.lr, change))
        self.adjoint = adjoint
        self.tapes.pop()

    def gradients(self) -> list[BlockWeights]:
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
    inv_std = (variance + block.norm.eps).rsqrt()
    normed = (flat - mean) * inv_std
    scaled = torch.addcmul(weights.shift[:, None], normed, weights.scale[:, None]).view_as(outputs)
    picked = None
    if block.pool:
        # Pooled before the ReLU: it selects the same positions wherever the result is positive, and is 4 times less.
        scaled, picked = max_pool2d(scaled, block.pool, return_indices=True)
        picked = picked.flatten(2)
    alive = (scaled > 0).flatten(2)
    return relu(scaled), _Tape(inputs, normed, inv_std, alive, picked, outputs.shape)


def _vjp(block: Block, weights: BlockWeights, tape: _Tape, grad_out: torch.Tensor) -> BlockWeights:
    """Return the gradient of a block's weights; that of the convolution's output stays on the tape."""
    tape.grad_norm = grad_out.view_as(tape.alive) * tape.alive
    count = tape.normed.shape[2]
    grad_shift = tape.grad_norm.sum(2, keepdim=True)
    grad_scale = (tape.grad_norm * tape.normed_picked).sum(2, keepdim=True)
    scaled_inv_std = weights.scale[:, None] * tape.inv_std
    tape.mean_qn = weights.scale[:, None] * grad_scale / count
    grad_conv = torch.addcmul(-scaled_inv_std * grad_shift / count, tape.normed, -tape.inv_std * tape.mean_qn)
    tape.grad_conv = tape.add_picked(grad_conv, scaled_inv_std * tape.grad_norm).view(tape.shape)
    kernel = _convolution_vjp(block, tape.grad_conv, tape.inputs, weights.conv, "kernel")
    return BlockWeights(kernel, grad_scale.sum((0, 2)), grad_shift.sum((0, 2)))


def _jvp(
    block: Block, weights: BlockWeights, direction: BlockWeights, tape: _Tape, tangent: torch.Tensor | None
) -> torch.Tensor:
    """Return the output's tangent, given the input's (None: zero) and a direction of the weights."""
    tape.inputs_tangent = tangent
    inputs, kernel = tape.inputs, direction.conv
    if tangent is not None:
        inputs, kernel = torch.cat([inputs, tangent], 1), torch.cat([kernel, weights.conv], 1)
    flat = conv2d(inputs, kernel, None, block.conv.stride, block.conv.padding).flatten(2)
    s = (flat * tape.normed).mean(2, keepdim=True)
    tape.inv_std_s = tape.inv_std * s
    tape.normed_tangent = torch.addcmul(flat - flat.mean(2, keepdim=True), tape.normed, -s).mul_(tape.inv_std)
    tape.normed_tangent_picked = tape.pick(tape.normed_tangent)
    scaled = direction.scale[:, None] * tape.normed_picked + weights.scale[:, None] * tape.normed_tangent_picked
    outputs = (scaled + direction.shift[:, None]) * tape.alive
    height = tape.shape[2] // max(block.pool, 1)
    return outputs.unflatten(2, (height, -1))


def _vjp_tangent(
    block: Block, weights: BlockWeights, direction: BlockWeights, tape: _Tape, grad_out_tangent: torch.Tensor
) -> tuple[BlockWeights, torch.Tensor]:
    """Return the tangents of a vjp's gradients at weights and input (of the first block: nothing of use)."""
    grad_norm_tangent = grad_out_tangent.view_as(tape.alive) * tape.alive
    count = tape.normed.shape[2]
    scale, scale_tangent = weights.scale[:, None], direction.scale[:, None]
    q_tangent = scale_tangent * tape.grad_norm + scale * grad_norm_tangent
    grad_scale_tangent = grad_norm_tangent * tape.normed_picked + tape.grad_norm * tape.normed_tangent_picked
    qn_tangent = q_tangent * tape.normed_picked + scale * tape.grad_norm * tape.normed_tangent_picked
    mean_qn_tangent = qn_tangent.sum(2, keepdim=True) / count
    dense = torch.addcmul(-q_tangent.sum(2, keepdim=True) / count, tape.normed_tangent, -tape.mean_qn)
    dense = tape.add_picked(dense.addcmul_(tape.normed, -mean_qn_tangent), q_tangent).mul_(tape.inv_std)
    grad_conv_tangent = dense.view(tape.shape).addcmul_(tape.grad_conv, -tape.inv_std_s[..., None])
    kernel = _convolution_vjp(block, grad_conv_tangent, tape.inputs, weights.conv, "kernel")
    grad_in_tangent = grad_out_tangent
    if tape.inputs_tangent is not None:
        kernel = kernel + _convolution_vjp(block, tape.grad_conv, tape.inputs_tangent, weights.conv, "kernel")
        kernels = torch.cat([weights.conv, direction.conv])
        both = torch.cat([grad_conv_tangent, tape.grad_conv], 1)
        grad_in_tangent = _convolution_vjp(block, both, tape.inputs, kernels, "inputs")
    gradient = BlockWeights(kernel, grad_scale_tangent.sum((0, 2)), grad_norm_tangent.sum((0, 2)))
    return gradient, grad_in_tangent


def _convolution_vjp(
    block: Block, grad_out: torch.Tensor, inputs: torch.Tensor, kernel: torch.Tensor, at: Literal["inputs", "kernel"]
) -> torch.Tensor:
    """Return the gradient at a convolution's inputs or kernel, given that at its output."""
    wanted = (at == "inputs", at == "kernel", False)
    stride, padding = block.conv.stride, block.conv.padding
    gradients = torch.ops.aten.convolution_backward(
        grad_out, inputs, kernel, None, stride, padding, (1, 1), False, (0, 0), 1, wanted
    )
    return gradients[0 if at == "inputs" else 1]
