"""The output layer in the inner loop, differentiated by hand, without a copy of its weights for any step."""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, one_hot, softmax

Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
]


def attend(
    weight: torch.Tensor, rows: torch.Tensor, extra: torch.Tensor, probability: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores s = rows weight^T + extra [B, C], their weights w, and w weight [B, d].

    The weights are softmax(s), or probability * s where probability is given.
    """
    scores = rows_times(rows, weight.T) + extra
    weights = softmax(scores, dim=1) if probability is None else probability * scores
    return scores, weights, rows_times(weights, weight)


def rows_times(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
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
