"""Exact second-order gradients without a graph of graphs, for models whose inner loop moves conv blocks and a head.

The inner steps run forward with first-order gradients only; then one sweep over the steps, backwards, carries the
adjoint of everything that a step reads. With phi_t the blocks' weights, e_t = enc(phi_t) [B, d], f_t = g_t e_t the
features (g_t the gate), v_t the loss's gradient at f_t (dual_head.py), u_t = g_t v_t, J_t = d enc / d phi and a the
learning rate:

    phi_{t+1} = phi_t - a J_t^T u_t

    u_t-bar   = -a J_t lambda_{t+1}                                            tangent pass       (`push`)
    v_t-bar   = g_t u_t-bar;  f_t-bar from the head's adjoint;  e_t-bar = g_t f_t-bar
    lambda_t  = lambda_{t+1} - a d(J_t^T u_t)[lambda_{t+1}] + J_t^T e_t-bar    tangent of reverse (`pull`)
    g_t-bar  += u_t-bar v_t + f_t-bar e_t

lambda_0 is the gradient of the blocks' weights. Shapes are static and nothing is read back to the host.
"""

from collections.abc import Callable

import torch
from torch import nn

from anml.config.training import InnerOptimizer
from anml.data.episodes import Episode
from anml.meta.conv_blocks import BlockStack, TorchBlocks
from anml.meta.dual_head import Attend, DualHead, attend
from anml.meta.engine import EpisodeOutcome, accuracy
from anml.models.anml import Anml, AnmlEncoder, Sanml
from anml.models.blocks import Block, find_blocks
from anml.models.encoders import Classifier
from anml.models.meta_model import MetaModel, belongs_to

StackFactory = Callable[[list[Block], float], BlockStack]


class AdjointEngine:
    """Hand-derived gradients; `stack` says with which kernels the blocks run."""

    name = "sweep"
    note = ""

    def __init__(
        self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer, stack: StackFactory = TorchBlocks
    ) -> None:
        reason = unsupported(model, inner_names)
        if reason:
            message = f"the sweep engine cannot run this model: {reason}; use the fast engine"
            raise ValueError(message)
        self.model, self.lr = model, inner.lr
        self.prefix, blocks = _blocks(model) or ("", [])
        self.stack = stack(blocks, inner.lr)
        self.attend: Attend = attend

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients of one episode."""
        gate = self.gate(episode.images)
        with torch.no_grad():
            return self._run(episode, gate)

    def gate(self, images: torch.Tensor) -> torch.Tensor | None:
        """Return the gate [M, d] with what `pull_gate` needs, or None for a model without one."""
        return self.model.modulate(images)

    def pull_gate(self, gate: torch.Tensor, cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the gradients of the gate's parameters."""
        named = {n: p for n, p in self.model.named_parameters() if belongs_to(n, self.model.gate_prefix)}
        return dict(zip(named, torch.autograd.grad(gate, list(named.values()), cotangent), strict=True))

    def block_gradients(self, prefix: str, stack: BlockStack) -> dict[str, torch.Tensor]:
        """Return a stack's gradients by parameter name."""
        gradients = {}
        for block, (conv, scale, shift) in zip(stack.blocks, stack.gradients(), strict=True):
            path = f"{prefix}.{block.name}"
            gradients |= {f"{path}.conv.weight": conv, f"{path}.norm.weight": scale, f"{path}.norm.bias": shift}
            if block.conv.bias is not None:
                gradients[f"{path}.conv.bias"] = torch.zeros_like(block.conv.bias)  # The norm removes it.
        return gradients

    def _run(self, episode: Episode, gate: torch.Tensor | None) -> EpisodeOutcome:
        weight, bias = (parameter.detach() for parameter in self.model.head.parameters())
        steps, batch = episode.support_index.shape
        head = DualHead(weight, bias, self.lr, (steps, batch), self.attend)
        gates = episode.images.new_ones(len(episode.images), 1) if gate is None else gate.detach()
        inner = _InnerLoop(self.stack, head, gates, episode)
        loss, logits = inner.forward()
        gate_cotangent = inner.sweep()
        gradients = dict(
            zip((f"{self.model.head_layer}.{p}" for p in ("weight", "bias")), head.gradients(), strict=True)
        )
        gradients |= self.block_gradients(self.prefix, self.stack)
        if gate is not None:
            gradients |= self.pull_gate(gate, gate_cotangent)
        ordered = {name: gradients[name] for name, _ in self.model.named_parameters()}
        return EpisodeOutcome(loss, accuracy(logits, episode.labels[episode.query_start :]), ordered)


class _InnerLoop:
    """One episode: forward, then the sweep."""

    def __init__(self, stack: BlockStack, head: DualHead, gates: torch.Tensor, episode: Episode) -> None:
        self.stack, self.head, self.gates, self.episode = stack, head, gates, episode
        self.encoded: list[torch.Tensor] = []
        self.slopes: list[torch.Tensor] = []

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the inner steps; return the meta loss and its logits [Q, C]."""
        images, labels, index, start, _ = self.episode
        self.stack.start(len(index))
        for step, rows in enumerate(index):
            encoded = self.stack.encode(step, images[rows])
            slope = self.head.learn(step, encoded * self.gates[rows], labels[rows])
            self.stack.descend(step, slope * self.gates[rows])
            self.encoded.append(encoded)
            self.slopes.append(slope)
        encoded = self.stack.encode_query(images[start:])
        loss, logits, slope = self.head.query(encoded * self.gates[start:], labels[start:])
        self.stack.pull_query(slope * self.gates[start:])
        self.query_gate_cotangent = slope * encoded
        return loss, logits

    def sweep(self) -> torch.Tensor:
        """Carry the adjoints back to the start; return the gate's [M, d]."""
        index = self.episode.support_index
        cotangents = [torch.empty(0)] * len(index)
        for step in reversed(range(len(index))):
            gate = self.gates[index[step]]
            pushed = self.stack.push(step)
            pulled = self.head.pull(step, pushed * gate)
            self.stack.pull(step, pulled * gate)
            cotangents[step] = torch.addcmul(pushed * self.slopes[step], pulled, self.encoded[step])
        total = self.query_gate_cotangent.new_zeros(len(self.gates), cotangents[0].shape[1])
        total[self.episode.query_start :] = self.query_gate_cotangent
        return total.index_add_(0, index.flatten(), torch.cat(cotangents))


def unsupported(model: MetaModel, inner_names: list[str]) -> str:
    """Say why the sweep engine cannot train this model so, or return an empty string when it can."""
    found = _blocks(model)
    if found is None:
        return "its encoder is not a stack of convolution, InstanceNorm, ReLU and pooling (maybe times a gate)"
    head = {f"{model.head_layer}.{part}" for part, _ in model.head.named_parameters()}
    whole = {n for n, _ in model.named_parameters() if belongs_to(n, model.head_prefix)}
    if not isinstance(model.head, nn.Linear) or whole != head or len(head) != 2:
        return "its head is not one Linear layer with a bias"
    if set(inner_names) != head | {n for n, _ in model.named_parameters() if belongs_to(n, found[0])}:
        return "the inner loop does not move exactly the encoder's blocks and the head"
    return ""


def _blocks(model: MetaModel) -> tuple[str, list[Block]] | None:
    """Return the name of the module that holds the encoder's blocks, and the blocks."""
    prefix = None
    if isinstance(model, (Anml, Sanml)):
        prefix = "rln"
    elif isinstance(model, Classifier):
        prefix = "encoder.rln" if isinstance(model.encoder, AnmlEncoder) else "encoder"
    blocks = find_blocks(model.get_submodule(prefix).named_children()) if prefix else None
    return (prefix, blocks) if prefix and blocks else None
