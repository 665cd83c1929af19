"""Convolution blocks in C++ (blocks.h): for the adjoint engine, and as a drop-in for a model's own stack of blocks."""

import copy
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from anml.models.blocks import Block, BlockWeights, find_blocks
from anml.native import kernels


class NativeBlocks:
    """`BlockStack` (meta/conv_blocks.py) in C++; float32 and float64, on a CPU."""

    def __init__(self, blocks: list[Block], learning_rate: float) -> None:
        self.blocks, self.lr = blocks, learning_rate
        self.stack: Any = None
        self.made_for: tuple[Any, ...] = ()
        self.steps: int | None = 0
        self.episodes = 0

    def start(self, steps: int) -> None:
        # The first images tell the size.
        self.steps = steps
        self.episodes += 1

    def encode(self, step: int, images: torch.Tensor) -> torch.Tensor:
        return self._started(images).encode(step, images.contiguous())

    def descend(self, step: int, grad_out: torch.Tensor) -> None:
        self.stack.descend(step, grad_out.contiguous())

    def encode_query(self, images: torch.Tensor) -> torch.Tensor:
        return self._started(images).encode_query(images.contiguous())

    def query_vjp(self, grad_out: torch.Tensor) -> None:
        self.stack.query_vjp(grad_out.contiguous())

    def step_vjp(self, grad_out: torch.Tensor) -> None:
        """Run the blocks of step 0 backwards, for its gradient instead of an SGD step."""
        self.stack.step_vjp(grad_out.contiguous())

    def jvp(self, step: int) -> torch.Tensor:
        return self.stack.jvp(step)

    def carry_adjoint(self, step: int, features_adjoint: torch.Tensor) -> None:
        self.stack.carry_adjoint(step, features_adjoint.contiguous())

    def gradients(self) -> list[BlockWeights]:
        flat = self.stack.gradients()
        return [BlockWeights(*flat[i : i + 3]) for i in range(0, len(flat), 3)]

    def _started(self, images: torch.Tensor) -> Any:
        key = (images.dtype, *images.shape[1:])
        if key != self.made_for:
            self.stack, self.made_for = self._make(*key), key
        if self.steps is not None:
            self.stack.start(self.steps, [part.contiguous() for block in self.blocks for part in block.weights])
            self.steps = None
        return self.stack

    def _make(self, dtype: torch.dtype, channels: int, height: int, width: int) -> Any:
        layers = []
        for block in self.blocks:
            pad = block.conv.padding[0]
            assert isinstance(pad, int)
            layers.append([channels, block.conv.out_channels, height, width, pad, block.pool])
            channels = block.conv.out_channels
            height, width = ((size + 2 * pad - 2) // max(block.pool, 1) for size in (height, width))
        make = {torch.float32: kernels("train").Stack32, torch.float64: kernels("train").Stack64}[dtype]
        return make(layers, self.blocks[0].norm.eps, self.lr)


class NativeStack(nn.Sequential):
    """A stack of blocks and what follows it, in the place of the Sequential it was made of, parameters included.

    One backward pass after each forward pass, before the next; no second derivatives. RuntimeError otherwise.
    """

    def __init__(self, original: nn.Sequential) -> None:
        super().__init__()
        for name, module in original.named_children():
            self.add_module(name, module)
        self.native = NativeBlocks(_leading_blocks(original), 1.0)
        after = len(self.native.blocks) + 1  # and their flattening
        self.rest = list(original.children())[after:]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        blocks = self.native.blocks
        weights = [part for block in blocks for part in (block.conv.weight, *block.norm.parameters())]
        biases = [block.conv.bias for block in blocks if block.conv.bias is not None]
        features = _RunBlocks.apply(input, self.native, *weights, *biases)
        for module in self.rest:
            features = module(features)
        assert isinstance(features, torch.Tensor)
        return features


class _RunBlocks(torch.autograd.Function):
    """The blocks as one operation. All threads share a single image; of several, each thread takes some."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, native: NativeBlocks, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.native, ctx.alone = native, len(images) == 1
        native.start(1 if ctx.alone else 0)
        ctx.episode, ctx.biases = native.episodes, parameters[3 * len(native.blocks) :]
        return native.encode(0, images) if ctx.alone else native.encode_query(images)

    @staticmethod
    @once_differentiable  # Its type forgets the parameter's name.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads_out: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        if ctx.episode != ctx.native.episodes:
            message = "native blocks remember their last forward pass only: differentiate it before the next"
            raise RuntimeError(message)
        (ctx.native.step_vjp if ctx.alone else ctx.native.query_vjp)(grads_out[0])
        weights = [part for block in ctx.native.gradients() for part in block]
        # The norm removes what a convolution's bias adds.
        return (None, None, *weights, *(torch.zeros_like(bias) for bias in ctx.biases))


def use_native_blocks(model: nn.Module) -> None:
    """Replace every stack of blocks that the kernels can run by a native one."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Sequential and _leading_blocks(module) and not unsupported_layers(module):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, NativeStack(module))


def with_native_blocks(model: nn.Module) -> nn.Module | None:
    """Return a copy with native stacks that shares the model's parameters and buffers; None if it would have none."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    native = copy.deepcopy(model, shared)
    use_native_blocks(native)
    return native if any(isinstance(module, NativeStack) for module in native.modules()) else None


def unsupported_layers(model: nn.Module) -> str:
    """Say why the kernels cannot run the convolutions of a model or of a part, or return an empty string."""
    parameters = list(model.parameters())
    if any(p.device.type != "cpu" or p.dtype not in (torch.float32, torch.float64) for p in parameters):
        return "it is not in float32 or float64 on a CPU"
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            shape = (module.kernel_size, module.stride, module.dilation, module.groups, module.padding_mode)
            if shape != ((3, 3), (1, 1), (1, 1), 1, "zeros"):
                return f"{name} is not a 3x3 convolution of stride 1"
    return ""


def _leading_blocks(stack: nn.Sequential) -> list[Block]:
    """Return the blocks that a stack consists of up to its flattening; none if there is anything else."""
    before = []
    for name, module in stack.named_children():
        if isinstance(module, nn.Flatten):
            return find_blocks(before) or []
        before.append((name, module))
    return []
