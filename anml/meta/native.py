"""The sweep engine with native kernels: the same algorithm, its conv blocks (the gate's too) run by native/blocks.h."""

import torch
from torch import nn

from anml.config.training import InnerOptimizer
from anml.meta.adjoint import AdjointEngine
from anml.models.blocks import Block, find_blocks
from anml.models.meta_model import MetaModel
from anml.native import kernels
from anml.native.blocks import NativeBlocks, unsupported_layers


class NativeEngine(AdjointEngine):
    """The sweep with native blocks. Raises ValueError for a model, RuntimeError on a machine that it cannot serve."""

    name = "native"
    make_stack = NativeBlocks

    def __init__(self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer) -> None:
        super().__init__(model, inner_names, inner)
        gate = _gate_parts(model)
        self.gate_blocks = NativeBlocks(gate[0], inner.lr) if gate else None
        self.gate_layer = gate[1] if gate else None

    @staticmethod
    def unsupported(model: MetaModel, inner_names: list[str]) -> str:
        return AdjointEngine.unsupported(model, inner_names) or unsupported_layers(model)

    @staticmethod
    def attend(
        weight: torch.Tensor, rows: torch.Tensor, extra: torch.Tensor, probability: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return tuple(kernels("train").attend(weight, rows.contiguous(), extra.contiguous(), probability))

    def gate(self, images: torch.Tensor) -> torch.Tensor | None:
        if self.gate_blocks is None or self.gate_layer is None:
            return super().gate(images)
        with torch.no_grad():
            self.gate_blocks.start(0)
            self.gate_features = self.gate_blocks.encode_query(images)  # for `gate_vjp`
            return torch.sigmoid(self.gate_layer(self.gate_features))

    def gate_vjp(self, gate: torch.Tensor, grad_gate: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.gate_blocks is None or self.gate_layer is None:
            return super().gate_vjp(gate, grad_gate)
        grad_out = grad_gate * gate * (1 - gate)
        self.gate_blocks.query_vjp(grad_out @ self.gate_layer.weight)
        prefix = self.model.gate_prefix or ""
        layer = {f"{prefix}.fc.weight": grad_out.T @ self.gate_features, f"{prefix}.fc.bias": grad_out.sum(0)}
        return layer | self.block_gradients(prefix, self.gate_blocks)


def _gate_parts(model: MetaModel) -> tuple[list[Block], nn.Linear] | None:
    """Return the blocks and the layer after them, of a gate that is made so."""
    if model.gate_prefix is None:
        return None
    children = dict(model.get_submodule(model.gate_prefix).named_children())
    layer = children.pop("fc", None)
    blocks = find_blocks(children.items())
    return (blocks, layer) if blocks and isinstance(layer, nn.Linear) else None
