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

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot, softmax

from anml.config.training import InnerOptimizer
from anml.data.episodes import Episode
from anml.meta.conv_blocks import BlockStack, TorchBlocks
from anml.meta.engine import EpisodeOutcome, accuracy
from anml.models.anml import Anml, AnmlEncoder, Sanml
from anml.models.blocks import Block, find_blocks
from anml.models.encoders import Classifier
from anml.models.meta_model import MetaModel, belongs_to
from anml.native import kernels
from anml.native.blocks import NativeBlocks, unsupported_layers

Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
]


def attend(
    weight: torch.Tensor, rows: torch.Tensor, extra: torch.Tensor, probability: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores s = rows weight^T + extra [B, C], their weights w, and w weight [B, d].

    The weights are softmax(s), or probability * s where probability is given.
    """
    scores = _rows_times(rows, weight.T) + extra
    weights = softmax(scores, dim=1) if probability is None else probability * scores
    return scores, weights, _rows_times(weights, weight)


def _rows_times(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return rows [n, k] @ matrix [k, m]; a single row as a matrix-vector product, several times faster on a CPU."""
    return torch.mv(matrix.T, rows[0])[None] if len(rows) == 1 else rows @ matrix


class DualHead:
    """An episode's fast output layer in dual form, forward and adjoint, by hand.

    `learn` once per inner step, `query` once, `carry_adjoint` once per step in reverse. W0 [C, d] and b0 [C] are the
    layer before the inner loop, a is the learning rate, f_s [B, d] are the features and delta_s [B, C] the logits'
    gradients of step s. The layer at step t maps x to z(x), and a gradient delta at z to the gradient v(delta) at x:

        z(x)     = x W0^T + b0 - a sum_{s<t} (x f_s^T + 1) delta_s
        v(delta) = delta W0    - a sum_{s<t} (delta delta_s^T) f_s

    Both are bilinear in what autograd would have to differentiate, so their adjoints are again such products. Rows of
    all steps lie in one buffer, so "s < t" is a slice of static size. A step reads W0 twice forward and twice backward.
    Each pair has the form of attention with W0 as keys and values (`attend`), because softmax is delta but for the
    label's row: one pass over W0 can then do both (native/head.h).
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, lr: float, shape: tuple[int, int], attend: Attend = attend
    ) -> None:
        """Start an episode whose support has `shape` [steps, batch]."""
        self.weight, self.bias, self.lr, self.batch, self.attend = weight, bias, lr, shape[1], attend
        classes, width = weight.shape
        rows = shape[0] * shape[1]
        self.features, self.grad_adjoints, self.mixed = (weight.new_zeros(rows, width) for _ in range(3))
        self.deltas, self.probabilities, self.logit_adjoints = (weight.new_zeros(rows, classes) for _ in range(3))

    def learn(self, step: int, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Take the SGD step on features [B, d], labels [B]; return the loss's gradient [B, d] at the features."""
        now, before = self._now(step), step * self.batch
        change = (features @ self.features[:before].T + 1) @ self.deltas[:before]
        _, probability, mixed = self.attend(self.weight, features, self.bias - self.lr * change, None)
        delta = (probability - one_hot(labels, self.weight.shape[0])) / self.batch
        self.features[now], self.probabilities[now] = features, probability
        self.deltas[now], self.mixed[now] = delta, mixed
        return self._changed(delta, (mixed - self.weight[labels]) / self.batch, before)

    def query(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the meta loss, logits [Q, C] and the loss's gradient [Q, d] at the features; start the adjoints."""
        similarity = features @ self.features.T + 1
        logits = torch.addmm(self.bias, features, self.weight.T).addmm_(similarity, self.deltas, alpha=-self.lr)
        delta = (softmax(logits, dim=1) - one_hot(labels, self.weight.shape[0])) / len(features)
        self.query_features, self.query_delta = features, delta
        self.feature_gram = self.features @ self.features.T + 1
        self.delta_gram = self.deltas @ self.deltas.T
        self.feature_adjoints = -self.lr * (delta @ self.deltas.T).T @ features
        self.delta_adjoints = -self.lr * similarity.T @ delta
        return cross_entropy(logits, labels), logits, self._changed(delta, delta @ self.weight, len(self.features))

    def carry_adjoint(self, step: int, grad_adjoint: torch.Tensor) -> torch.Tensor:
        """Return the adjoint [B, d] of the features of a step, given that of what its `learn` returned.

        With K = f f^T + 1, L = delta delta^T, v the gradient that `learn` returned and bars for adjoints:
        delta_t-bar += v-bar W_t^T,  z_t-bar = softmax'(z_t) delta_t-bar / B,  f_t-bar += z_t-bar W_t,  and for s < t
        delta_s-bar -= a ((v-bar f_s^T)^T delta_t + K_st z_t-bar)
        f_s-bar     -= a (L_st v-bar + (z_t-bar delta_s^T)^T f_t)
        """
        now, before = self._now(step), step * self.batch
        overlap = grad_adjoint @ self.features[:before].T
        extra = torch.addmm(self.delta_adjoints[now], overlap, self.deltas[:before], alpha=-self.lr)
        _, weighted, pulled = self.attend(self.weight, grad_adjoint, extra, self.probabilities[now])
        # softmax'(z) y = p y - (p . y) p, and so is its product with W0.
        inner = weighted.sum(1, keepdim=True)
        logit_adjoint = torch.addcmul(weighted, self.probabilities[now], inner, value=-1) / self.batch
        feature_adjoint = torch.addcmul(pulled, self.mixed[now], inner, value=-1) / self.batch
        feature_adjoint = self._changed(logit_adjoint, self.feature_adjoints[now] + feature_adjoint, before)
        self.grad_adjoints[now], self.logit_adjoints[now] = grad_adjoint, logit_adjoint
        # What this adds to the adjoints of earlier steps, the last two lines above.
        crossed = self.deltas[:before] @ logit_adjoint.T
        on_deltas = torch.cat([overlap.T, self.feature_gram[:before, now]], 1)
        on_features = torch.cat([self.delta_gram[:before, now], crossed], 1)
        deltas = torch.cat([self.deltas[now], logit_adjoint])
        features = torch.cat([grad_adjoint, self.features[now]])
        self.delta_adjoints[:before].addmm_(on_deltas, deltas, alpha=-self.lr)
        self.feature_adjoints[:before].addmm_(on_features, features, alpha=-self.lr)
        return feature_adjoint

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of weight and bias: every product of a step is a row of one matrix product."""
        left = torch.cat([self.query_delta, self.deltas, self.logit_adjoints])
        right = torch.cat([self.query_features, self.grad_adjoints, self.features])
        return left.T @ right, self.query_delta.sum(0) + self.logit_adjoints.sum(0)

    def _changed(self, delta: torch.Tensor, gradient: torch.Tensor, before: int) -> torch.Tensor:
        """Return the gradient at the features, given what the slow weights make of it: v(d) from d W0."""
        return torch.addmm(gradient, delta @ self.deltas[:before].T, self.features[:before], alpha=-self.lr)

    def _now(self, step: int) -> slice:
        return slice(step * self.batch, (step + 1) * self.batch)


class AdjointEngine:
    """Hand-derived gradients; `make_stack` says with which kernels the blocks run, `attend` those of the head."""

    name = "sweep"
    note = ""
    make_stack: Callable[[list[Block], float], BlockStack] = TorchBlocks
    attend: Attend = staticmethod(attend)

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
        head = DualHead(weight, bias, self.lr, (steps, batch), self.attend)
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
        self.encoded: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the inner steps; return the meta loss and its logits [Q, C]."""
        images, labels, index, start, _ = self.episode
        self.stack.start(len(index))
        for step, rows in enumerate(index):
            encoded = self.stack.encode(step, images[rows])
            gradient = self.head.learn(step, encoded * self.gates[rows], labels[rows])
            self.stack.descend(step, gradient * self.gates[rows])
            self.encoded.append(encoded)
            self.gradients.append(gradient)
        encoded = self.stack.encode_query(images[start:])
        loss, logits, gradient = self.head.query(encoded * self.gates[start:], labels[start:])
        self.stack.query_vjp(gradient * self.gates[start:])
        self.query_grad_gate = gradient * encoded
        return loss, logits

    def sweep(self) -> torch.Tensor:
        """Carry the adjoints back to the start; return the gate's [M, d]."""
        index = self.episode.support_index
        grad_gates = [torch.empty(0)] * len(index)
        for step in reversed(range(len(index))):
            gate = self.gates[index[step]]
            grad_adjoint = self.stack.jvp(step)
            feature_adjoint = self.head.carry_adjoint(step, grad_adjoint * gate)
            self.stack.carry_adjoint(step, feature_adjoint * gate)
            grad_gates[step] = torch.addcmul(grad_adjoint * self.gradients[step], feature_adjoint, self.encoded[step])
        total = self.query_grad_gate.new_zeros(len(self.gates), grad_gates[0].shape[1])
        total[self.episode.query_start :] = self.query_grad_gate
        # Step by step: with the rows of all cycles at once, a GPU would add up those of one image in any order.
        for rows, grad_gate in zip(index, grad_gates, strict=True):
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
