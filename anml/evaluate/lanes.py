"""Many trajectories side by side on a GPU: runs and learning rates as leading dimensions of everything that learns.

A single trajectory's step is too little work for a GPU, and the same kernels do for all of them at once.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from anml.evaluate.learner import Logits
from anml.evaluate.prepared_run import PreparedRun, RunPreparer
from anml.evaluate.stages import Stage, Weights, advance, classify, predict

# Of the free memory; the rest is for scoring, and for what is shared.
_SHARE = 0.6
# A weight, its gradient and its two moments.
_COPIES = 4
# What a step keeps of each layer's output: for its gradient, and the gradient itself.
_ACTIVATIONS = 3


class LaneLearner:
    """The product of trials (one per run, of one shape) and learning rates, each learning as if it were alone."""

    name = "lanes"

    def __init__(self, prepared_runs: Sequence[PreparedRun], rates: Sequence[float]) -> None:
        self.prepared_runs, self.rates, self.model = prepared_runs, rates, prepared_runs[0].model
        self.stage: Stage = prepared_runs[0].stage
        stacked = {name: _stack(prepared_runs, name) for name in prepared_runs[0].trained_names}
        # [rates, runs, ...]; what is re-drawn but does not learn is the same for all rates: [runs, ...].
        self.weights = {n: w.expand(len(rates), *w.shape).contiguous() for n, w in stacked.items()}
        fixed = [name for name in prepared_runs[0].redrawn_names if name not in stacked]
        self.fixed = {name: _stack(prepared_runs, name) for name in fixed}
        self.inputs = torch.stack([prepared.train_inputs for prepared in prepared_runs])
        self.labels = prepared_runs[0].train_labels
        # One group of parameters a rate: views into the weights, so that one fused kernel updates all its runs.
        self.views = [{name: weight[i] for name, weight in self.weights.items()} for i in range(len(rates))]
        groups = [{"params": list(v.values()), "lr": rate} for v, rate in zip(self.views, rates, strict=True)]
        self.optimizer = torch.optim.Adam(groups, betas=prepared_runs[0].betas, fused=True)
        over_runs = vmap(grad(self._loss), in_dims=(0, 0, 0, 0))
        self.gradients = vmap(over_runs, in_dims=(0, None, None, None))

    def learn_each(self, first: int, last: int) -> None:
        """Take a step on each example."""
        for step in range(first, last):
            labels = self.labels[step : step + 1].expand(len(self.prepared_runs), 1)
            self._step(self.inputs[:, step : step + 1], labels)

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        """Take a step on one batch of every run."""
        chosen = torch.stack(list(picks)).to(self.labels.device)
        inputs = torch.stack([own[rows] for own, rows in zip(self.inputs, chosen, strict=True)])
        self._step(inputs, self.labels[chosen])

    def logits(self) -> Iterator[Logits]:
        """Yield the logits of every trajectory."""
        for run, prepared in enumerate(self.prepared_runs):
            for view in self.views:
                own = {name: weight[run] for name, weight in (view | self.fixed).items()}
                train = predict(self.model, prepared.train_inputs, self.stage, own)
                yield train, predict(self.model, prepared.test_inputs, self.stage, own)

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Take an Adam step on inputs [runs, B, ...] and labels [runs, B]."""
        gradients = self.gradients(self.weights, self.fixed, inputs, labels)
        for i, view in enumerate(self.views):
            for name, weight in view.items():
                weight.grad = gradients[name][i]
        self.optimizer.step()

    def _loss(self, weights: Weights, fixed: Weights, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(classify(self.model, inputs, self.stage, weights | fixed), labels)


def lanes_that_fit(preparer: RunPreparer) -> int:
    """Return how many trajectories the free memory of the GPU has room for, at least one."""
    free, _ = torch.cuda.mem_get_info(preparer.data.images.device)
    return max(1, int(free * _SHARE / bytes_per_lane(preparer)))


def bytes_per_lane(preparer: RunPreparer) -> int:
    """Estimate the memory that a trajectory takes while it learns, its share of its run's examples included."""
    config, (classes, train, test) = preparer.config, preparer.largest
    batch = min(config.batch_size, classes * train) if config.eval_method == "iid" else 1
    weights = sum(preparer.model.get_parameter(name).numel() for name in preparer.trained)
    inputs, outputs = example_sizes(preparer)
    # Of a run: its trial's examples, and once more those to learn, stacked.
    examples = classes * (2 * train + test) * inputs // len(config.lr)
    return preparer.dtype.itemsize * (_COPIES * weights + _ACTIVATIONS * batch * outputs + examples)


@torch.no_grad()
def example_sizes(preparer: RunPreparer) -> tuple[int, int]:
    """Count the elements of one example's inputs, and of the outputs of all layers from there on."""
    first = torch.tensor([0])
    inputs = advance(preparer.model, preparer.data.batch(first, first, preparer.dtype)[0], preparer.stage)
    sizes: list[int] = []
    layers = [module for module in preparer.model.modules() if not any(module.children())]
    handles = [layer.register_forward_hook(lambda _, inputs, output: sizes.append(output.numel())) for layer in layers]
    try:
        classify(preparer.model, inputs, preparer.stage)
    finally:
        for handle in handles:
            handle.remove()
    return inputs.numel(), sum(sizes)


def _stack(prepared_runs: Sequence[PreparedRun], name: str) -> torch.Tensor:
    return torch.stack([prepared.model.get_parameter(name).detach() for prepared in prepared_runs])
