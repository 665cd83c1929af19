"""The dual head for GPUs: a step forward or backward is two matrix-vector products and one Triton kernel between them.

The slow weights W0 and all that the steps leave for later ones are rows of one matrix R = [W0; f; v-bar], so that each
of the two products reads it once. The formulas are those of `DualHead`, but instead of adding to the adjoints of all
earlier steps, a step gathers what the later ones have left: with n a row of this step, r one of a later step, and the
sums over all such r,

    delta_n-bar = delta_n-bar(query) + v-bar_n W_n^T - a sum (v-bar_r . f_n) delta_r + K_rn z_r-bar
    f_n-bar     = f_n-bar(query) + z_n-bar W_n       - a sum (z_r-bar . delta_n) f_r + L_rn v-bar_r
"""

from typing import Any

import torch
import triton
import triton.language as tl

from anml.meta.dual_head import DualHead, rows_times

_TILE = 32768  # numbers of a kernel's tile [rows, classes]


class TritonHead(DualHead):
    """`DualHead` on a GPU, float32 or float64; on a CPU in Triton's interpreter."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, lr: float, shape: tuple[int, int]) -> None:
        super().__init__(weight, bias, lr, shape)
        classes, width = weight.shape
        rows = shape[0] * shape[1]
        self.matrix = torch.cat([weight, weight.new_zeros(2 * rows, width)])
        self.features, self.grad_adjoints = self.matrix[classes:].split(rows)
        # By which a step multiplies the matrix's rows; and the products of the matrix with its v-bar.
        self.factors, self.overlaps = (weight.new_zeros(rows, classes + 2 * rows) for _ in range(2))
        self.logit_adjoints = self.factors[:, :classes]
        block = triton.next_power_of_2(classes)
        self.sizes: dict[str, Any] = {"LR": lr, "CLASSES": classes, "BLOCK": block, "ROWS": rows, "num_warps": 8}
        self.sizes |= {"TILE": min(max(_TILE // block, 1), triton.next_power_of_2(rows))}

    def learn(self, step: int, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        now, before = self._now(step), step * self.batch
        self.features[now] = features
        used = self.matrix[: len(self.weight) + before]
        factors = features.new_empty(self.batch, len(used))
        _learn[(self.batch,)](
            rows_times(features, used.T), self.bias, self.deltas, self.probabilities, labels, factors, before,
            **self.sizes,
        )  # fmt: skip
        return rows_times(factors, used)

    def carry_adjoint(self, step: int, grad_adjoint: torch.Tensor) -> torch.Tensor:
        now = self._now(step)
        self.grad_adjoints[now] = grad_adjoint
        self.overlaps[now] = rows_times(grad_adjoint, self.matrix.T)
        _carry_adjoint[(self.batch,)](
            self.overlaps, self.delta_adjoints, self.deltas, self.probabilities, self.feature_gram, self.delta_gram,
            self.factors, step * self.batch, **self.sizes,
        )  # fmt: skip
        return self.feature_adjoints[now] + rows_times(self.factors[now], self.matrix)


@triton.jit(do_not_specialize=["before"])
def _learn(
    scores, bias, deltas, probabilities, labels, factors, before, LR: tl.constexpr,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """From x R^T to delta and the factors [delta, -a delta delta_s^T] of R, for each example of the step."""
    example, batch = tl.program_id(0), tl.num_programs(0)
    at, tile = tl.arange(0, BLOCK), tl.arange(0, TILE)
    inside = at < CLASSES
    scores += example * (CLASSES + before)
    factors += example * (CLASSES + before)
    logits = tl.load(scores + at, mask=inside, other=0.0) + tl.load(bias + at, mask=inside, other=0.0)
    for first in range(0, before, TILE):
        row = first + tile
        similarity = tl.load(scores + CLASSES + row, mask=row < before, other=0.0) + 1
        logits -= LR * tl.sum(similarity[:, None] * _rows_of(deltas, row, row < before, at, CLASSES, CLASSES), 0)
    logits = tl.where(inside, logits, -float("inf"))
    exponentials = tl.exp(logits - tl.max(logits, 0))
    probability = exponentials / tl.sum(exponentials, 0)
    delta = (probability - (at == tl.load(labels + example))) / batch
    tl.store(probabilities + (before + example) * CLASSES + at, probability, mask=inside)
    tl.store(deltas + (before + example) * CLASSES + at, delta, mask=inside)
    tl.store(factors + at, delta, mask=inside)
    for first in range(0, before, TILE):
        row = first + tile
        products = delta[None, :] * _rows_of(deltas, row, row < before, at, CLASSES, CLASSES)
        tl.store(factors + CLASSES + row, -LR * tl.sum(products, 1), mask=row < before)


@triton.jit(do_not_specialize=["before"])
def _carry_adjoint(
    overlaps, delta_adjoints, deltas, probabilities, feature_gram, delta_gram,
    factors, before, LR: tl.constexpr,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """From v-bar R^T and what later steps have left to the factors of R that make the adjoint of the features."""
    batch = tl.num_programs(0)
    now, after = before + tl.program_id(0), before + batch
    length: tl.constexpr = CLASSES + 2 * ROWS
    at, tile = tl.arange(0, BLOCK), tl.arange(0, TILE)
    inside = at < CLASSES
    adjoint = tl.load(delta_adjoints + now * CLASSES + at, mask=inside, other=0.0)
    adjoint += tl.load(overlaps + now * length + at, mask=inside, other=0.0)
    for first in range(0, ROWS, TILE):
        row = first + tile
        is_later = (row >= after) & (row < ROWS)
        # v-bar_n . f_s for a step s before, v-bar_r . f_n for one after.
        to = tl.where(is_later, row * length + now, now * length + row)
        overlap = tl.load(overlaps + CLASSES + to, mask=is_later | (row < before), other=0.0)
        similarity = tl.load(feature_gram + row * ROWS + now, mask=is_later, other=0.0)
        passed = overlap[:, None] * _rows_of(deltas, row, is_later | (row < before), at, CLASSES, CLASSES)
        passed += similarity[:, None] * _rows_of(factors, row, is_later, at, CLASSES, length)
        adjoint -= LR * tl.sum(passed, 0)
    # softmax'(z) y = p y - (p . y) p
    probability = tl.load(probabilities + now * CLASSES + at, mask=inside, other=0.0)
    weighted = probability * adjoint
    logit_adjoint = (weighted - probability * tl.sum(weighted, 0)) / batch
    tl.store(factors + now * length + at, logit_adjoint, mask=inside)
    for first in range(0, ROWS, TILE):
        row = first + tile
        is_later = (row >= after) & (row < ROWS)
        products = logit_adjoint[None, :] * _rows_of(deltas, row, row < before, at, CLASSES, CLASSES)
        left = tl.load(factors + row * length + CLASSES + now, mask=is_later, other=0.0)
        left -= LR * tl.sum(products, 1)
        tl.store(factors + now * length + CLASSES + row, left, mask=row < ROWS)
        similarity = tl.load(delta_gram + row * ROWS + now, mask=is_later, other=0.0)
        tl.store(factors + now * length + CLASSES + ROWS + row, -LR * similarity, mask=row < ROWS)


@triton.jit
def _rows_of(matrix, row, wanted, at, CLASSES: tl.constexpr, length: tl.constexpr) -> Any:
    """Return the logits' part of some rows of a matrix of rows of some length, 0 for those not wanted."""
    inside = wanted[:, None] & (at < CLASSES)[None, :]
    return tl.load(matrix + row[:, None] * length + at[None, :], mask=inside, other=0.0)
