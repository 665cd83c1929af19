"""The output layer alone learns, on a GPU: one Triton kernel for each step of all lanes.

The gradient of one example at a Linear layer is an outer product, (softmax - one-hot) x input. It is never written to
memory: one pass over the weights takes Adam's step (Kingma and Ba 2015, algorithm 1) and multiplies the new weights
with the next example. So a step reads and writes weights and both moments once, as the kernel in C++ does
(anml/native/adam.h). No two programs write the same number, and sums have one order: the same bits each time.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]  # It comes with torch for GPUs.
import triton.language as tl  # pyright: ignore[reportMissingImports]

from anml.evaluate.learner import Lanes, Replay
from anml.evaluate.prepared_run import PreparedRun

# torch.optim.Adam's default.
_EPSILON = 1e-8
# Rows and columns of the weights that a program has in its registers at once.
_ROWS, _COLUMNS = 4, 512


@functools.cache
def find_problem(device: torch.device) -> str:
    """Say why Triton cannot build kernels for a device, or return an empty string."""
    try:
        _launch(_set_one, (1,))(torch.zeros(1, device=device))
    except Exception as error:  # Of Triton, of the compiler that it calls, or of the driver.
        return (str(error) or type(error).__name__).splitlines()[0]
    return ""


@triton.jit
def _set_one(value: tl.tensor) -> None:
    tl.store(value, 1.0)


@triton.jit(do_not_specialize=["k"])
def _adam_step(
    weight: tl.tensor, weight_m: tl.tensor, weight_v: tl.tensor, bias: tl.tensor, bias_m: tl.tensor, bias_v: tl.tensor,
    logits: tl.tensor, inputs: tl.tensor, labels: tl.tensor, lrs: tl.tensor, corrections: tl.tensor,
    position: tl.tensor, k: tl.tensor, runs: tl.tensor, examples: tl.tensor,
    OUTPUTS: tl.constexpr, FEATURES: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr, EPSILON: tl.constexpr,
    ALL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
) -> None:  # fmt: skip
    """Learn the example at `position` + k from its logits, and write those of the next example.

    A program has ROWS rows of a lane. logits: [2, lanes, OUTPUTS], read at k % 2. corrections: [steps, 2], of both
    moments. ALL: a power of two that holds all outputs.
    """
    lane = tl.program_id(1).to(tl.int64)
    lanes = tl.num_programs(1)
    example = tl.load(position) + k
    following = tl.minimum(example + 1, examples - 1)
    run_inputs = inputs + lane % runs * examples * FEATURES
    lane_logits = logits + (k % 2 * lanes + lane) * OUTPUTS
    next_logits = logits + ((k + 1) % 2 * lanes + lane) * OUTPUTS
    outputs = tl.arange(0, ALL)
    of_all = tl.load(lane_logits + outputs, mask=outputs < OUTPUTS, other=float("-inf"))
    highest = tl.max(of_all)
    total = tl.sum(tl.exp(of_all - highest))
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < OUTPUTS
    own = tl.load(lane_logits + row, mask=is_row, other=0.0)
    error = tl.exp(own - highest) / total - (row == tl.load(labels + example)).to(own.dtype)
    rate = tl.load(lrs + lane // runs) / tl.load(corrections + 2 * k)
    inv_root = 1 / tl.sqrt(tl.load(corrections + 2 * k + 1))
    at = lane * OUTPUTS + row
    scores = _adam(bias, bias_m, bias_v, at, is_row, error, rate, inv_root, BETA1, BETA2, EPSILON)
    for first in range(0, FEATURES, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        is_column = column < FEATURES
        now = tl.load(run_inputs + example * FEATURES + column, mask=is_column, other=0.0)
        then = tl.load(run_inputs + following * FEATURES + column, mask=is_column, other=0.0)
        inside = is_row[:, None] & is_column[None, :]
        places = at[:, None] * FEATURES + column[None, :]
        gradient = error[:, None] * now[None, :]
        new = _adam(weight, weight_m, weight_v, places, inside, gradient, rate, inv_root, BETA1, BETA2, EPSILON)
        scores += tl.sum(new * then[None, :], axis=1)
    tl.store(next_logits + row, scores, mask=is_row)


@triton.jit
def _adam(
    weight: tl.tensor, weight_m: tl.tensor, weight_v: tl.tensor, places: tl.tensor, inside: tl.tensor,
    gradient: tl.tensor, rate: tl.tensor, inv_root: tl.tensor,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPSILON: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Update weights and moments at some places; return the new weights, 0 where `inside` is false."""
    m = BETA1 * tl.load(weight_m + places, mask=inside, other=0.0) + (1 - BETA1) * gradient
    v = BETA2 * tl.load(weight_v + places, mask=inside, other=0.0) + (1 - BETA2) * gradient * gradient
    new = tl.load(weight + places, mask=inside, other=0.0) - rate * m / (tl.sqrt(v) * inv_root + EPSILON)
    tl.store(weight_m + places, m, mask=inside)
    tl.store(weight_v + places, v, mask=inside)
    tl.store(weight + places, new, mask=inside)
    return new


def _launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., Any]:
    return kernel[grid]


class FusedHeadLearner(Lanes):
    """Lanes whose whole output layer learns, and nothing else, from what it receives."""

    def __init__(self, prepared_runs: Sequence[PreparedRun], lrs: Sequence[float]) -> None:
        super().__init__(prepared_runs, lrs)
        head = self.model.head_layer
        self.weight, self.bias = self.weights[f"{head}.weight"], self.weights[f"{head}.bias"]
        self.moments = [torch.zeros_like(part) for part in (self.weight, self.weight, self.bias, self.bias)]
        self.betas, self.steps = prepared_runs[0].betas, 0
        self.rates = torch.tensor(lrs, dtype=self.weight.dtype, device=self.weight.device)
        self.logits_of_two = self.bias.new_empty(2, *self.bias.shape)
        self.replays: dict[int, tuple[torch.Tensor, Replay]] = {}

    def learn_each(self, first: int, last: int) -> None:
        count = last - first
        if count not in self.replays:
            self.replays[count] = self.rates.new_empty(count, 2), Replay(self.weight.device)
        corrections, replay = self.replays[count]
        taken = range(self.steps + 1, self.steps + count + 1)
        corrections.copy_(torch.tensor([[1 - beta**n for beta in self.betas] for n in taken], dtype=torch.float64))
        self.position.fill_(first)
        replay(lambda: self._learn(corrections))
        self.steps += count

    def _learn(self, corrections: torch.Tensor) -> None:
        """Learn from `position` on, by tensors that stay where they are: a graph can replay it."""
        rates, runs, outputs, features = self.weight.shape
        inputs = self.inputs.index_select(1, self.position)
        products = self.weight @ inputs.transpose(1, 2)
        torch.add(products[..., 0], self.bias, out=self.logits_of_two[0])
        weight_m, weight_v, bias_m, bias_v = self.moments
        grid = (-(-outputs // _ROWS), rates * runs)
        for k in range(len(corrections)):
            _launch(_adam_step, grid)(
                self.weight, weight_m, weight_v, self.bias, bias_m, bias_v, self.logits_of_two, self.inputs,
                self.labels, self.rates, corrections, self.position, k, runs, self.inputs.shape[1],
                OUTPUTS=outputs, FEATURES=features, BETA1=self.betas[0], BETA2=self.betas[1], EPSILON=_EPSILON,
                ALL=triton.next_power_of_2(outputs), ROWS=_ROWS, COLUMNS=_COLUMNS,
            )  # fmt: skip
