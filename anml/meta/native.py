"""The sweep engine with native kernels: the same algorithm, its conv blocks (the gate's too) run by native/blocks.h."""

from typing import Any

import torch
from torch import nn

from anml.meta.conv_blocks import Block, BlockWeights, find_blocks
from anml.meta.conv_sweep import SweepEngine
from anml.meta.conv_sweep import unsupported as unsupported_sweep
from anml.models.meta_model import MetaModel
from anml.native.build import kernels


class NativeBlocks:
    """`BlockStack` (conv_blocks.py) in C++; float32 and float64, on a CPU."""

    def __init__(self, blocks: list[Block], learning_rate: float) -> None:
        self.blocks, self.rate = blocks, learning_rate
        self.stack: Any = None
        self.made_for: tuple[Any, ...] = ()
        self.steps: int | None = 0

    def start(self, steps: int) -> None:
        """Begin an episode; the first images tell for which size."""
        self.steps = steps

    def encode(self, step: int, images: torch.Tensor) -> torch.Tensor:
        """Run the blocks, keeping what the sweep needs."""
        return self._started(images).encode(step, images.contiguous())

    def descend(self, step: int, cotangent: torch.Tensor) -> None:
        """Run the blocks backwards and take the SGD step."""
        self.stack.descend(step, cotangent.contiguous())

    def encode_query(self, images: torch.Tensor) -> torch.Tensor:
        """Run the blocks on the meta loss's images."""
        return self._started(images).encode_query(images.contiguous())

    def pull_query(self, cotangent: torch.Tensor) -> None:
        """Run the blocks of the query backwards."""
        self.stack.pull_query(cotangent.contiguous())

    def push(self, step: int) -> torch.Tensor:
        """Run the tangent pass along the adjoint."""
        return self.stack.push(step)

    def pull(self, step: int, cotangent: torch.Tensor) -> None:
        """Run the tangent of the reverse pass."""
        self.stack.pull(step, cotangent.contiguous())

    def gradients(self) -> list[BlockWeights]:
        """Return what the sweep arrived at."""
        flat = self.stack.gradients()
        return [BlockWeights(*flat[i : i + 3]) for i in range(0, len(flat), 3)]

    def _started(self, images: torch.Tensor) -> Any:
        wanted = (images.dtype, *images.shape[1:])
        if wanted != self.made_for:
            self.stack, self.made_for = self._make(*wanted), wanted
        if self.steps is not None:
            self.stack.start(self.steps, [part.contiguous() for block in self.blocks for part in block.weights])
            self.steps = None
        return self.stack

    def _make(self, dtype: torch.dtype, channels: int, height: int, width: int) -> Any:
        layers = []
        for block in self.blocks:
            pad = _padding(block)
            layers.append([channels, block.conv.out_channels, height, width, pad, block.pool])
            channels = block.conv.out_channels
            height, width = ((size + 2 * pad - 2) // max(block.pool, 1) for size in (height, width))
        make = {torch.float32: kernels("train").Stack32, torch.float64: kernels("train").Stack64}[dtype]
        return make(layers, self.blocks[0].norm.eps, self.rate)


class NativeEngine(SweepEngine):
    """The sweep with native blocks. Raises ValueError for a model, RuntimeError on a machine that it cannot serve."""

    name = "native"

    def __init__(self, model: MetaModel, inner_names: list[str], inner_lr: float) -> None:
        reason = unsupported(model, inner_names)
        if reason:
            message = f"the native engine cannot run this model: {reason}; use the fast engine"
            raise ValueError(message)
        super().__init__(model, inner_names, inner_lr, NativeBlocks)
        self.attend = _attend
        gate = _gate_parts(model)
        self.gate_blocks = NativeBlocks(gate[0], inner_lr) if gate else None
        self.gate_layer = gate[1] if gate else None

    def gate(self, images: torch.Tensor) -> torch.Tensor | None:
        """Return the gate [M, d]; its features stay for `pull_gate`."""
        if self.gate_blocks is None or self.gate_layer is None:
            return super().gate(images)
        with torch.no_grad():
            self.gate_blocks.start(0)
            self.gate_features = self.gate_blocks.encode_query(images)
            return torch.sigmoid(self.gate_layer(self.gate_features))

    def pull_gate(self, gate: torch.Tensor, cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the gradients of the gate's parameters."""
        if self.gate_blocks is None or self.gate_layer is None:
            return super().pull_gate(gate, cotangent)
        cotangent = cotangent * gate * (1 - gate)
        self.gate_blocks.pull_query(cotangent @ self.gate_layer.weight)
        prefix = self.model.gate_prefix or ""
        gradients = self.block_gradients(prefix, self.gate_blocks)
        gradients |= {f"{prefix}.fc.weight": cotangent.T @ self.gate_features, f"{prefix}.fc.bias": cotangent.sum(0)}
        return gradients


def _attend(
    weight: torch.Tensor, rows: torch.Tensor, extra: torch.Tensor, probability: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, extra = rows.contiguous(), extra.contiguous()
    return tuple(kernels("train").attend(weight, rows, extra, probability))


def unsupported(model: MetaModel, inner_names: list[str]) -> str:
    """Say why the native engine cannot train this model so, or return an empty string when it can."""
    reason = unsupported_sweep(model, inner_names)
    if reason:
        return reason
    parameters = list(model.parameters())
    if any(p.device.type != "cpu" or p.dtype not in (torch.float32, torch.float64) for p in parameters):
        return "it is not in float32 or float64 on a CPU"
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and not _is_plain(module):
            return f"{name} is not a 3x3 convolution of stride 1"
    return ""


def _is_plain(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)


def _padding(block: Block) -> int:
    padding = block.conv.padding
    assert not isinstance(padding, str)
    return padding[0]


def _gate_parts(model: MetaModel) -> tuple[list[Block], nn.Linear] | None:
    """Return the blocks and the layer after them, of a gate that is made so."""
    if model.gate_prefix is None:
        return None
    children = dict(model.get_submodule(model.gate_prefix).named_children())
    layer = children.pop("fc", None)
    blocks = find_blocks(children.items())
    return (blocks, layer) if blocks and isinstance(layer, nn.Linear) else None
