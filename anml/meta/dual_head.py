"""The output layer's part of a backward sweep: an episode's fast head in dual form, forward and adjoint, by hand.

With W0 [C, d], b0 [C] the head before the inner loop, a its learning rate, f_s [B, d] the features and delta_s [B, C]
the logits' gradients of step s, the head at step t maps x to

    z(x)   = x W0^T + b0 - a sum_{s<t} (x f_s^T + 1) delta_s                                     (`_logits`)
    v(d)   = d W0        - a sum_{s<t} (d delta_s^T) f_s          gradient d at z to gradient at x (`_features`)

(see dual_linear.py). Both are bilinear in what autograd would have to differentiate, so their adjoints are again such
products; `pull` below is the list of them. Rows of all steps lie in one buffer, so "s < t" is a slice of static size.
"""

import torch
from torch.nn.functional import cross_entropy, one_hot, softmax


class DualHead:
    """The head of one episode. `learn` once per inner step, `query` once, `pull` once per step in reverse."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, learning_rate: float, steps: int, batch: int) -> None:
        self.weight, self.bias, self.rate, self.batch = weight, bias, learning_rate, batch
        classes, width = weight.shape
        rows = steps * batch
        self.features, self.slopes = weight.new_zeros(rows, width), weight.new_zeros(rows, width)
        self.deltas, self.probabilities = weight.new_zeros(rows, classes), weight.new_zeros(rows, classes)
        self.logit_adjoints = weight.new_zeros(rows, classes)

    def learn(self, step: int, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Take the SGD step on features [B, d], labels [B]; return the loss's gradient [B, d] at the features."""
        now, before = self._now(step), step * self.batch
        probability = softmax(self._logits(features, before), dim=1)
        delta = (probability - one_hot(labels, self.weight.shape[0])) / self.batch
        self.features[now], self.probabilities[now], self.deltas[now] = features, probability, delta
        return self._features(delta, before)

    def query(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the meta loss, logits [Q, C] and the loss's gradient [Q, d] at the features; start the adjoints."""
        rows = len(self.features)
        logits = self._logits(features, rows)
        delta = (softmax(logits, dim=1) - one_hot(labels, self.weight.shape[0])) / len(features)
        self.query_features, self.query_delta = features, delta
        self.feature_gram = self.features @ self.features.T + 1
        self.delta_gram = self.deltas @ self.deltas.T
        self.feature_adjoints = -self.rate * (delta @ self.deltas.T).T @ features
        self.delta_adjoints = -self.rate * (features @ self.features.T + 1).T @ delta
        return cross_entropy(logits, labels), logits, self._features(delta, rows)

    def pull(self, step: int, slope: torch.Tensor) -> torch.Tensor:
        """Return the adjoint [B, d] of the features of a step, given that of what its `learn` returned.

        With K = f f^T + 1, L = delta delta^T, v the gradient that `learn` returned and bars for adjoints:
        delta_t-bar += v-bar W_t^T,  z_t-bar = softmax'(z_t) delta_t-bar / B,  f_t-bar += z_t-bar W_t, and for s < t
        delta_s-bar -= a ((v-bar f_s^T)^T delta_t + K_st z_t-bar),  f_s-bar -= a (L_st v-bar + (z_t-bar delta_s^T)^T f_t)
        """
        now, before = self._now(step), step * self.batch
        feature, delta, probability = self.features[now], self.deltas[now], self.probabilities[now]
        overlap = slope @ self.features[:before].T
        adjoint = (
            self.delta_adjoints[now] + _rows_times(slope, self.weight.T) - self.rate * overlap @ self.deltas[:before]
        )
        inner = (probability * adjoint).sum(1, keepdim=True)
        logit_adjoint = probability * (adjoint - inner) / self.batch
        feature_adjoint = self.feature_adjoints[now] + self._features(logit_adjoint, before)
        self._add_earlier(before, now, overlap, slope, logit_adjoint, delta, feature)
        self.slopes[now], self.logit_adjoints[now] = slope, logit_adjoint
        return feature_adjoint

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of weight and bias: every product of a step is a row of one matrix product."""
        left = torch.cat([self.query_delta, self.deltas, self.logit_adjoints])
        right = torch.cat([self.query_features, self.slopes, self.features])
        return left.T @ right, self.query_delta.sum(0) + self.logit_adjoints.sum(0)

    def _add_earlier(
        self,
        before: int,
        now: slice,
        overlap: torch.Tensor,
        slope: torch.Tensor,
        logit_adjoint: torch.Tensor,
        delta: torch.Tensor,
        feature: torch.Tensor,
    ) -> None:
        gram, similarity = self.delta_gram[:before, now], self.feature_gram[:before, now]
        crossed = self.deltas[:before] @ logit_adjoint.T
        self.delta_adjoints[:before] -= (
            self.rate * torch.cat([overlap.T, similarity], 1) @ torch.cat([delta, logit_adjoint])
        )
        self.feature_adjoints[:before] -= self.rate * torch.cat([gram, crossed], 1) @ torch.cat([slope, feature])

    def _logits(self, features: torch.Tensor, before: int) -> torch.Tensor:
        similarity = features @ self.features[:before].T + 1
        return _rows_times(features, self.weight.T) + self.bias - self.rate * similarity @ self.deltas[:before]

    def _features(self, delta: torch.Tensor, before: int) -> torch.Tensor:
        overlap = delta @ self.deltas[:before].T
        return _rows_times(delta, self.weight) - self.rate * overlap @ self.features[:before]

    def _now(self, step: int) -> slice:
        return slice(step * self.batch, (step + 1) * self.batch)


def _rows_times(rows: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return rows [n, k] @ matrix [k, m]; a single row as a matrix-vector product, several times faster on a CPU."""
    return torch.mv(matrix.T, rows[0])[None] if len(rows) == 1 else rows @ matrix
