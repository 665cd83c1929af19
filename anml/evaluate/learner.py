"""What learns in an evaluation: the interface of all learners, the plain one that tests compare with, and lanes.

Lanes are many trajectories side by side on a GPU: runs and learning rates are leading dimensions of all that learns.
Each trajectory has its own Adam; unused output rows take part in the softmax.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import nn
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from anml.evaluate.prepared_run import PreparedRun, RunPreparer, Stage, Weights, classify, predict
from anml.evaluate.product_conv import use_products
from anml.models.meta_model import MetaModel
from anml.optim import Adam, make_stepper

# Of all training and of all test examples of a run, each [n, outputs].
Logits = tuple[torch.Tensor, torch.Tensor]


class Predictor(Protocol):
    """Trajectories of one shape, in this order: run after run, learning rates innermost."""

    def logits(self) -> Iterator[Logits]:
        """Yield the logits of each trajectory."""
        ...


class SequenceLearner(Predictor, Protocol):
    """Learns one example at a time."""

    def learn_each(self, first: int, last: int) -> None:
        """Take one step on each of the training examples [first, last), in order."""
        ...


class BatchLearner(Predictor, Protocol):
    """Learns in batches."""

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        """Take one step on a batch of training examples, given their indexes int64 [B] for every run."""
        ...


def predict_run(prepared: PreparedRun, model: MetaModel, weights: Weights | None = None) -> Logits:
    """Return a model's logits of all examples of a run; `weights` replace parameters of these names."""
    train = predict(model, prepared.train_inputs, prepared.stage, weights)
    return train, predict(model, prepared.test_inputs, prepared.stage, weights)


def learns_linear_head(model: MetaModel, stage: Stage, trained_names: Sequence[str]) -> bool:
    """Say whether a whole Linear output layer learns, and nothing else, from what it receives."""
    whole_head = {f"{model.head_layer}.{part}" for part in ("weight", "bias")}
    return stage == "head" and type(model.head) is nn.Linear and set(trained_names) == whole_head


class Unlearned:
    """The models as they were prepared, for protocols that learn nothing."""

    def __init__(self, prepared_runs: Sequence[PreparedRun]) -> None:
        self.prepared_runs = prepared_runs

    def logits(self) -> Iterator[Logits]:
        return (predict_run(prepared, prepared.model) for prepared in self.prepared_runs)


class OneTrajectory:
    """A copy of one prepared model that learns; everything but its `trained_names` stays as it is."""

    def __init__(self, prepared: PreparedRun) -> None:
        self.prepared, self.model = prepared, copy.deepcopy(prepared.model)

    def logits(self) -> Iterator[Logits]:
        yield predict_run(self.prepared, self.model)


class ReferenceLearner(OneTrajectory):
    """Learns by autograd and any of torch's optimizers, step by step: by any protocol, on any device."""

    def __init__(self, prepared: PreparedRun, lr: float) -> None:
        super().__init__(prepared)
        trained = [self.model.get_parameter(name).requires_grad_(True) for name in prepared.trained_names]
        self.take_step = make_stepper(prepared.stepper, lr, trained)

    def learn_each(self, first: int, last: int) -> None:
        for step in range(first, last):
            self._step(slice(step, step + 1))

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        self._step(picks[0])

    def _step(self, examples: slice | torch.Tensor) -> None:
        prepared = self.prepared
        logits = classify(self.model, prepared.train_inputs[examples], prepared.stage)
        cross_entropy(logits, prepared.train_labels[examples]).backward()
        self.take_step()


# Of the free memory; the rest is for scoring, and for what is shared.
_SHARE = 0.6
# A weight, its gradient and its two moments.
_COPIES = 4
# What a step keeps of each layer's output: for its gradient, and the gradient itself.
_ACTIVATIONS = 3


# Calls before a capture: libraries choose their algorithms and allocate, which a capture may not do.
_WARM_UPS = 3


class Replay:
    """Calls a function of tensors that stay where they are: the first few times as it is, then as a CUDA (HIP) graph.

    On a CPU, and where the function cannot be captured, it always calls. It keeps no function: a learner that keeps its
    own would be a reference cycle, and its memory would outlive its block of trajectories.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_plain, self.calls = device.type != "cuda", 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, function: Callable[[], None]) -> None:
        if self.calls == _WARM_UPS and not self.is_plain:
            self._capture(function)
        self.calls += 1
        if self.graph is None:
            function()
        else:
            self.graph.replay()

    def _capture(self, function: Callable[[], None]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):  # Also returns what the calls before have left unused.
                function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warnings.warn(f"steps run without a CUDA graph: {error}".splitlines()[0], stacklevel=1)
        else:
            self.graph = graph


class Lanes:
    """The product of prepared runs (of one shape) and learning rates, each learning as if it were alone."""

    def __init__(self, prepared_runs: Sequence[PreparedRun], lrs: Sequence[float]) -> None:
        first = prepared_runs[0]
        self.prepared_runs, self.model = prepared_runs, first.model
        stacked = {name: _stack(prepared_runs, name) for name in first.trained_names}
        # [lrs, runs, ...]; what is re-drawn but does not learn is the same for all rates: [runs, ...].
        self.weights = {n: w.expand(len(lrs), *w.shape).contiguous() for n, w in stacked.items()}
        self.fixed = {name: _stack(prepared_runs, name) for name in first.redrawn_names if name not in stacked}
        self.inputs = torch.stack([prepared.train_inputs for prepared in prepared_runs])
        self.labels = first.train_labels
        # Of the example to learn, on the device: a graph reads it there.
        self.position = torch.zeros(1, dtype=torch.int64, device=self.labels.device)
        self.views = [{name: weight[i] for name, weight in self.weights.items()} for i in range(len(lrs))]

    def logits(self) -> Iterator[Logits]:
        for run, prepared in enumerate(self.prepared_runs):
            for view in self.views:
                weights = {name: weight[run] for name, weight in (view | self.fixed).items()}
                yield predict_run(prepared, self.model, weights)


class LaneLearner(Lanes):
    """Lanes of any layers, by autograd; steps of one example are replayed as one CUDA graph."""

    def __init__(self, prepared_runs: Sequence[PreparedRun], lrs: Sequence[float]) -> None:
        super().__init__(prepared_runs, lrs)
        stage = prepared_runs[0].stage
        # The columns of a whole batch would take too much memory.
        self.gradients_of_batch = _gradients(self.model, stage)
        self.model = use_products(self.model) if stage == "images" else self.model
        self.gradients_of_one = _gradients(self.model, stage)
        # One group of parameters for each rate: views into the weights, so that one fused kernel updates all its runs.
        groups = [{"params": list(view.values()), "lr": lr} for view, lr in zip(self.views, lrs, strict=True)]
        self.optimizer = Adam(groups, betas=prepared_runs[0].betas, fused=True)
        self.replay = Replay(self.labels.device)

    def learn_each(self, first: int, last: int) -> None:
        self.position.fill_(first)
        for _ in range(first, last):
            self.replay(self._learn)

    def _learn(self) -> None:
        """Learn the example at `position`, and go on to the next."""
        labels = self.labels.index_select(0, self.position).expand(len(self.prepared_runs), 1)
        self._step(self.inputs.index_select(1, self.position), labels)
        self.position.add_(1)

    def learn_batch(self, picks: Sequence[torch.Tensor]) -> None:
        chosen = torch.stack(list(picks)).to(self.labels.device)
        batches = torch.stack([inputs[rows] for inputs, rows in zip(self.inputs, chosen, strict=True)])
        self._step(batches, self.labels[chosen])

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Take an Adam step on inputs [runs, B, ...] and labels [runs, B]."""
        differentiate = self.gradients_of_one if inputs.shape[1] == 1 else self.gradients_of_batch
        gradients = differentiate(self.weights, self.fixed, inputs, labels)
        for i, view in enumerate(self.views):
            for name, weight in view.items():
                weight.grad = gradients[name][i]
        for group in self.optimizer.param_groups:
            group["capturable"] = inputs.is_cuda and torch.cuda.is_current_stream_capturing()
        self.optimizer.step()
        self.optimizer.zero_grad()  # Or the next step's gradients would need memory beside these.


def _gradients(model: MetaModel, stage: Stage) -> Callable[..., Weights]:
    """Return the function that gives the loss's gradients [lrs, runs, ...].

    It holds no learner: in a reference cycle, a learner's memory would outlive its block of trajectories.
    """

    def loss(weights: Weights, fixed: Weights, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(classify(model, inputs, stage, weights | fixed), labels)

    return vmap(vmap(grad(loss)), in_dims=(0, None, None, None))


def _stack(prepared_runs: Sequence[PreparedRun], name: str) -> torch.Tensor:
    return torch.stack([prepared.model.get_parameter(name).detach() for prepared in prepared_runs])


def lanes_that_fit(preparer: RunPreparer) -> int:
    """Return how many trajectories the free memory of the GPU has room for, at least one."""
    free = _free_memory(preparer.data.images.device) - bytes_shared(preparer)
    return max(1, int(free * _SHARE / bytes_per_lane(preparer)))


def _free_memory(device: torch.device) -> int:
    """Return how many bytes this process may still allocate: torch keeps what it has freed."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = total * torch.cuda.get_per_process_memory_fraction(device)
    return int(min(free + torch.cuda.memory_reserved(device), allowed)) - torch.cuda.memory_allocated(device)


def bytes_shared(preparer: RunPreparer) -> int:
    """Return the memory of what all runs share: the inputs of every class, where no run re-draws what computes them."""
    if preparer.encoder is None:
        return 0
    images = len(preparer.data.images) * preparer.data.examples_per_class
    return preparer.dtype.itemsize * images * preparer.example(preparer.stage).numel()


def bytes_per_lane(preparer: RunPreparer) -> int:
    """Estimate the memory that a trajectory takes while it learns, with its share of its run's examples and model."""
    config, (classes, train, test) = preparer.config, preparer.largest
    rates = len(config.lr) if config.protocol.learns else 1
    batch = min(config.batch_size, classes * train) if config.protocol.takes_batches else 1
    inputs, layers = preparer.example(preparer.stage).numel(), preparer.layer_outputs(preparer.stage)
    outputs = sum(output.numel() for _, output in layers)
    if batch == 1:  # Convolutions are products, with columns beside their outputs.
        outputs += sum(m.weight[0].numel() * output[0, 0].numel() for m, output in layers if isinstance(m, nn.Conv2d))
    # A run holds its model, its examples, and once more those to learn, stacked.
    run = classes * (2 * train + test) * inputs + sum(weight.numel() for weight in preparer.model.parameters())
    learned = _COPIES * preparer.count_trained() + _ACTIVATIONS * batch * outputs
    return preparer.dtype.itemsize * (learned + run // rates)
