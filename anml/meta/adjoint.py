"""Exact second-order gradients without a graph of graphs, for models whose inner loop moves conv blocks and a head.

The inner steps run forward with first-order gradients only; then one sweep over the steps, backwards, carries the
adjoint of everything that a step reads. With phi_t the blocks' weights, e_t = enc(phi_t) [B, d], f_t = g_t e_t the
features (g_t the gate), v_t the loss's gradient at f_t (`DualHead`), u_t = g_t v_t, J_t = d enc / d phi and a the
learning rate:

    phi_{t+1} = phi_t - a J_t^T u_t

    u_t-bar   = -a J_t lambda_{t+1}                                            jvp along the adjoint
    v_t-bar   = g_t u_t-bar;  f_t-bar from the head's adjoint;  e_t-bar = g_t f_t-bar
    lambda_t  = lambda_{t+1} - a d(J_t^T u_t)[lambda_{t+1}] + J_t^T e_t-bar    tangent of the vjp (`carry_adjoint`)
    g_t-bar  += u_t-bar v_t + f_t-bar e_t

lambda_0 is the gradient of the blocks' weights. Shapes are static and nothing is read back to the host.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from anml.config.methods import InnerOptimizer
from anml.data.episodes import Episode
from anml.meta.conv_blocks import BlockStack, TorchBlocks
from anml.meta.dual_head import DualHead
from anml.meta.engine import EpisodeOutcome, accuracy
from anml.models.anml import Anml, AnmlEncoder, Sanml
from anml.models.blocks import Block, find_blocks
from anml.models.encoders import Classifier
from anml.models.meta_model import MetaModel, belongs_to
from anml.native import kernels
from anml.native.blocks import NativeBlocks, unsupported_layers


class AdjointEngine:
    """Hand-derived gradients; `make_stack` says with which kernels the blocks run, `make_head` those of the head."""

    name = "sweep"
    note = ""
    make_stack: Callable[[list[Block], float], BlockStack] = TorchBlocks
    make_head: Callable[[torch.Tensor, torch.Tensor, float, tuple[int, int]], DualHead] = DualHead

    def __init__(self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer) -> None:
        if reason := self.unsupported(model, inner_names):
            message = f"the {self.name} engine cannot run this model: {reason}; use the fast engine"
            raise ValueError(message)
        self.model, self.lr = model, inner.lr
        self.prefix, blocks = _blocks(model) or ("", [])
        self.stack = self.make_stack(blocks, inner.lr)

    @torch.no_grad()
    def run(self, episode: Episode) -> EpisodeOutcome:
        with torch.enable_grad():
            gate = self.gate(episode.images)
        weight, bias = (parameter.detach() for parameter in self.model.head.parameters())
        steps, batch = episode.support_index.shape
        head = self.make_head(weight, bias, self.lr, (steps, batch))
        gates = episode.images.new_ones(len(episode.images), 1) if gate is None else gate.detach()
        inner = _InnerLoop(self.stack, head, gates, episode)
        loss, logits = inner.forward()
        grad_gate = inner.sweep()
        layer, (grad_weight, grad_bias) = self.model.head_layer, head.gradients()
        gradients = {f"{layer}.weight": grad_weight, f"{layer}.bias": grad_bias}
        gradients |= self.block_gradients(self.prefix, self.stack)
        if gate is not None:
            gradients |= self.gate_vjp(gate, grad_gate)
        ordered = {name: gradients[name] for name, _ in self.model.named_parameters()}
        return EpisodeOutcome(loss, accuracy(logits, episode.labels[episode.query_start :]), ordered)

    def gate(self, images: torch.Tensor) -> torch.Tensor | None:
        """Return the gate [M, d] with what `gate_vjp` needs, or None for a model without one."""
        return self.model.modulate(images)

    def gate_vjp(self, gate: torch.Tensor, grad_gate: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the gradients of the gate's parameters."""
        named = {n: p for n, p in self.model.named_parameters() if belongs_to(n, self.model.gate_prefix)}
        return dict(zip(named, torch.autograd.grad(gate, list(named.values()), grad_gate), strict=True))

    def block_gradients(self, prefix: str, stack: BlockStack) -> dict[str, torch.Tensor]:
        """Return a stack's gradients by parameter name."""
        gradients = {}
        for block, (conv, scale, shift) in zip(stack.blocks, stack.gradients(), strict=True):
            path = f"{prefix}.{block.name}"
            gradients |= {f"{path}.conv.weight": conv, f"{path}.norm.weight": scale, f"{path}.norm.bias": shift}
            if block.conv.bias is not None:
                gradients[f"{path}.conv.bias"] = torch.zeros_like(block.conv.bias)  # The norm removes it.
        return gradients

    @staticmethod
    def unsupported(model: MetaModel, inner_names: list[str]) -> str:
        """Say why the engine cannot train this model so, or return an empty string when it can."""
        prefix_and_blocks = _blocks(model)
        if prefix_and_blocks is None:
            return "its encoder is not a stack of convolution, InstanceNorm, ReLU and pooling (maybe times a gate)"
        head = {f"{model.head_layer}.{part}" for part, _ in model.head.named_parameters()}
        layers = [type(m) for m in model.get_submodule(model.head_prefix).modules() if type(m) is not nn.Sequential]
        if layers != [nn.Linear] or len(head) != 2:
            return "its head is not one Linear layer with a bias"
        if set(inner_names) != head | {n for n, _ in model.named_parameters() if belongs_to(n, prefix_and_blocks[0])}:
            return "the inner loop does not move exactly the encoder's blocks and the head"
        return ""


class _InnerLoop:
    def __init__(self, stack: BlockStack, head: DualHead, gates: torch.Tensor, episode: Episode) -> None:
        self.stack, self.head, self.gates, self.episode = stack, head, gates, episode
        # [steps, batch, ...], all at once: on a GPU each indexing costs a launch.
        index = episode.support_index
        self.support = list(zip(episode.images[index], episode.labels[index], gates[index], strict=True))
        self.encoded: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the inner steps; return the meta loss and its logits [Q, C]."""
        images, labels, _, start, _ = self.episode
        self.stack.start(len(self.support))
        for step, (support_images, support_labels, gate) in enumerate(self.support):
            encoded = self.stack.encode(step, support_images)
            gradient = self.head.learn(step, encoded * gate, support_labels)
            self.stack.descend(step, gradient * gate)
            self.encoded.append(encoded)
            self.gradients.append(gradient)
        encoded = self.stack.encode_query(images[start:])
        loss, logits, gradient = self.head.query(encoded * self.gates[start:], labels[start:])
        self.stack.query_vjp(gradient * self.gates[start:])
        self.query_grad_gate = gradient * encoded
        return loss, logits

    def sweep(self) -> torch.Tensor:
        """Carry the adjoints back to the start; return the gate's [M, d]."""
        grad_gates = [torch.empty(0)] * len(self.support)
        for step, (_, _, gate) in reversed(list(enumerate(self.support))):
            grad_adjoint = self.stack.jvp(step)
            feature_adjoint = self.head.carry_adjoint(step, grad_adjoint * gate)
            self.stack.carry_adjoint(step, feature_adjoint * gate)
            grad_gates[step] = torch.addcmul(grad_adjoint * self.gradients[step], feature_adjoint, self.encoded[step])
        total = self.query_grad_gate.new_zeros(len(self.gates), grad_gates[0].shape[1])
        total[self.episode.query_start :] = self.query_grad_gate
        # Step by step: with the rows of all cycles at once, a GPU would add up those of one image in any order.
        for rows, grad_gate in zip(self.episode.support_index, grad_gates, strict=True):
            total.index_add_(0, rows, grad_gate)
        return total


def _blocks(model: MetaModel) -> tuple[str, list[Block]] | None:
    """Return the name of the module that holds the encoder's blocks, and the blocks."""
    prefix = ""
    # By exact types: a user's subclass may compute something else.
    if type(model) in (Anml, Sanml):
        prefix = "rln"
    elif type(model) is Classifier and type(model.classifier) in (nn.Linear, nn.Sequential):
        prefix = "encoder.rln" if type(model.encoder) is AnmlEncoder else "encoder"
    stack = model.get_submodule(prefix)
    blocks = find_blocks(stack.named_children()) if type(stack) is nn.Sequential else None
    return (prefix, blocks) if blocks else None


class KernelEngine(AdjointEngine):
    """The sweep with kernels of our own, which run the gate's blocks as well."""

    def __init__(self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer) -> None:
        super().__init__(model, inner_names, inner)
        gate = _gate_parts(model)
        self.gate_blocks = self.make_stack(gate[0], inner.lr) if gate else None
        self.gate_layer = gate[1] if gate else None

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


def _native_attend(
    weight: torch.Tensor, rows: torch.Tensor, extra: torch.Tensor, probability: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(kernels("train").attend(weight, rows.contiguous(), extra.contiguous(), probability))


class NativeEngine(KernelEngine):
    """The sweep in C++. Raises ValueError for a model, RuntimeError on a machine that it cannot serve."""

    name = "native"
    make_stack = NativeBlocks
    make_head = staticmethod(partial(DualHead, attend=_native_attend))

    @staticmethod
    def unsupported(model: MetaModel, inner_names: list[str]) -> str:
        return AdjointEngine.unsupported(model, inner_names) or unsupported_layers(model)


class TritonEngine(KernelEngine):
    """The sweep in Triton kernels. Raises ValueError for a model that it cannot serve."""

    name = "triton"

    @staticmethod
    def make_stack(blocks: list[Block], learning_rate: float) -> BlockStack:
        from anml.meta.triton_blocks import TritonBlocks  # Only here: not every machine has Triton.

        return TritonBlocks(blocks, learning_rate)

    @staticmethod
    def make_head(weight: torch.Tensor, bias: torch.Tensor, lr: float, shape: tuple[int, int]) -> DualHead:
        from anml.meta.triton_head import TritonHead

        return TritonHead(weight, bias, lr, shape)

    @staticmethod
    def unsupported(model: MetaModel, inner_names: list[str]) -> str:
        if reason := AdjointEngine.unsupported(model, inner_names):
            return reason
        if any(p.dtype not in (torch.float32, torch.float64) for p in model.parameters()):
            return "it is not in float32 or float64"
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                edges = (module.kernel_size, module.stride, module.padding)
                if any(len(set(edge)) > 1 for edge in edges):
                    return f"{name} is not a square convolution"
        return ""


def missing_triton(device: torch.device) -> str:
    """Say why Triton's kernels cannot run on a device, or return an empty string. TRITON_INTERPRET=1 is for tests."""
    if not importlib.util.find_spec("triton"):
        return "Triton is not installed (torch for CUDA and ROCm brings it)"
    can_run = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return "" if can_run else "Triton's kernels need a GPU (CUDA or ROCm)"


def _gate_parts(model: MetaModel) -> tuple[list[Block], nn.Linear] | None:
    """Return the blocks and the layer after them, of a gate that is made so."""
    if model.gate_prefix is None:
        return None
    children = dict(model.get_submodule(model.gate_prefix).named_children())
    layer = children.pop("fc", None)
    blocks = find_blocks(children.items())
    return (blocks, layer) if blocks and isinstance(layer, nn.Linear) else None
