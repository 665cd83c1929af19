"""What every training engine offers, and the plain engines: the reference, and first-order training.

`meta-first-order` uses the gradient at the fast weights as if it were the meta-gradient (FOMAML, Finn et al. 2017,
section 5.2). `sequential_episodic` meets the same episodes, but keeps the weights of the inner loop and then updates
them on the meta loss: ordinary sequential learning, which differentiates through nothing. `reptile` takes one step
more, on the meta loss, and all that the steps have changed as its gradient (Nichol et al. 2018, arXiv 1803.02999,
algorithm 1).
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from anml.config.methods import InnerOptimizer
from anml.config.training import Precision
from anml.data.episodes import Episode
from anml.meta.inner_steps import InnerSteps, Weights
from anml.models.meta_model import MetaModel
from anml.native import available
from anml.native.blocks import with_native_blocks


class EpisodeOutcome(NamedTuple):
    """What one episode yields.

    loss, accuracy: of the meta loss's examples, zero-dimensional tensors (not read back: that would stall a GPU).
    gradients: of the loss with respect to the weights before the inner loop, by parameter name, and to learned rates.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor
    gradients: dict[str, torch.Tensor]


def autocast(precision: Precision | None, device: torch.device) -> torch.autocast:
    """Return the context of a forward and backward pass: with bf16-mixed, torch rounds what it multiplies to bfloat16.

    Weights, their gradients, sums and the optimizer stay in float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


class Engine(Protocol):
    """Runs the inner loop of an episode and differentiates what follows from it. Changes no weights."""

    name: str
    # What a user should know beside the choice itself, such as a fallback; it may change at the first episode.
    note: str

    def run(self, episode: Episode) -> EpisodeOutcome: ...


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the fraction of right predictions, a zero-dimensional float tensor."""
    return (logits.argmax(dim=1) == labels).float().mean()


def differentiate(logits: torch.Tensor, labels: torch.Tensor, parameters: dict[str, torch.Tensor]) -> EpisodeOutcome:
    """Return what an episode yields, given the logits of its query: autograd differentiates with respect to all."""
    loss = cross_entropy(logits, labels)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return EpisodeOutcome(loss.detach(), accuracy(logits, labels), dict(zip(parameters, gradients, strict=True)))


RunEpisode = Callable[[Episode], EpisodeOutcome]

# Rounding in float32 explains no larger relative error: without flipped near-ties it is 1e-4. Mistakes of PyTorch were
# 1e-2 and more.
TOLERANCE = 5e-3


class CheckedEpisodes:
    """Runs episodes the quick way, which it first compares with the plain way.

    PyTorch has given wrong second derivatives for models that it could compile (functional_episode.py). Where the quick
    way fails or errs, the plain way goes on, and `note` says so.
    """

    def __init__(self, quick: RunEpisode | None, plain: RunEpisode) -> None:
        self.quick, self.plain, self.note = quick, plain, ""
        self.is_checked = False

    def run(self, episode: Episode) -> EpisodeOutcome:
        if self.quick and not self.is_checked:
            self.is_checked = True
            try:
                problem = _median_mistake(self.quick, self.plain, episode)
            except Exception as error:  # A compiler may throw anything; the plain way does without it.
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                problem = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
            if problem:
                self.quick, self.note = None, f"fell back to the fast engine: {problem}"
        return (self.quick or self.plain)(episode)


def _median_mistake(quick: RunEpisode, plain: RunEpisode, episode: Episode) -> str:
    """Say which gradient the quick way gets wrong in the median of five episodes, or return an empty string.

    In float32 a single episode proves nothing: where two values in a max-pooling, or a ReLU and zero, are equal but for
    rounding, the two ways may choose differently, and the whole gradient moves by 1e-3 to 3e-2. So the episode is run
    as it is, by three quarter turns, and mirrored: each has near-ties of its own.
    """
    images = [*(torch.rot90(episode.images, turns, (-2, -1)) for turns in range(4)), episode.images.flip(-1)]
    # Contiguous, as in training: for other strides a compiler would compile again.
    episodes = [episode._replace(images=turned.contiguous()) for turned in images]
    errors = [gradient_errors(quick(turned), plain(turned)) for turned in episodes]
    for name in errors[0]:
        error = statistics.median(each[name] for each in errors)
        if error > TOLERANCE:
            return f"its gradient of {name} is off by {100 * error:.2g}%, a mistake of this PyTorch"
    return ""


def gradient_errors(found: EpisodeOutcome, expected: EpisodeOutcome) -> dict[str, float]:
    """Return the relative error of every gradient; it is 0 where what is expected is not finite. Reads values back."""
    errors = {}
    norms = {name: gradient.norm() for name, gradient in expected.gradients.items()}
    # Against all of them together as well: a gradient that is truly zero is noise in either.
    floor = 0.01 * torch.stack(list(norms.values())).norm()
    for name, norm in norms.items():
        error = (found.gradients[name] - expected.gradients[name]).norm() / torch.maximum(norm, floor)
        errors[name] = float(error.nan_to_num(torch.inf)) if bool(norm.isfinite()) else 0.0
    return errors


class ReferenceEngine:
    """The slow and obvious engine: `higher` keeps the graph of all SGD steps. Other engines are tested against it."""

    name = "reference"
    note = ""

    def __init__(self, model: MetaModel, inner_names: list[str], inner: InnerOptimizer) -> None:
        self.model, self.inner = model, InnerSteps(model, inner_names, inner)
        groups = [{"params": [model.get_parameter(name)]} for name in inner_names]
        self.optimizer = torch.optim.SGD(groups, lr=inner.lr, momentum=inner.momentum)

    def run(self, episode: Episode) -> EpisodeOutcome:
        import higher  # Only this engine needs it.

        lrs: Any = {"lr": [*self.inner.rates.values()]} if self.inner.rates else None
        with higher.innerloop_ctx(self.model, self.optimizer, copy_initial_weights=False, override=lrs) as (net, inner):
            for index in episode.support_index:
                inner.step(cross_entropy(net(episode.images[index]), episode.labels[index]))
            logits, labels = net(episode.images[episode.query_start :]), episode.labels[episode.query_start :]
            return differentiate(logits, labels, {**dict(self.model.named_parameters()), **self.inner.rates})


class FirstOrderEngine:
    """SGD in the inner loop, plain gradient after it; `native`: with blocks in C++ where the model has such.

    For the gradient of a learned rate, too, the gradients of the inner loop are constants: it is minus the sum of what
    a parameter moved along, times the parameter's gradient (MAML++ in its first-order form).
    """

    name = "first-order"

    def __init__(
        self,
        model: MetaModel,
        inner_names: list[str],
        inner: InnerOptimizer,
        keep_fast_weights: bool,
        native: bool = False,
        moves_to_fast_weights: bool = False,
    ) -> None:
        self.model = model
        self.classify, self.note = _with_native_blocks(model) if native else (model, "")
        self.names, self.fast = inner_names, [model.get_parameter(name) for name in inner_names]
        self.inner = InnerSteps(model, inner_names, inner)
        self.keep_fast_weights, self.moves_to_fast_weights = keep_fast_weights, moves_to_fast_weights
        # Of the episode that runs: velocities, and with learned rates the sum of what each parameter moved along.
        self.velocity: Weights = {}
        self.ways: Weights = {}

    @property
    def is_native(self) -> bool:
        """Whether blocks run in C++."""
        return self.classify is not self.model

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients; unless fast weights are kept, the weights are put back."""
        self.velocity, self.ways = {}, {}
        before = [] if self.keep_fast_weights else [p.detach().clone() for p in self.fast]
        for index in episode.support_index:
            self._sgd_step(cross_entropy(self.classify(episode.images[index]), episode.labels[index]))
        logits, labels = self.classify(episode.images[episode.query_start :]), episode.labels[episode.query_start :]
        outcome = differentiate(logits, labels, dict(self.model.named_parameters()))
        if self.moves_to_fast_weights:
            outcome = self._towards_fast_weights(outcome, before)
        of_rates = {f"inner_lr.{name}": -(outcome.gradients[name] * way).sum() for name, way in self.ways.items()}
        with torch.no_grad():
            for parameter, value in zip(self.fast, before, strict=not self.keep_fast_weights):
                parameter.copy_(value)
        return outcome._replace(gradients=outcome.gradients | of_rates)

    def _towards_fast_weights(self, outcome: EpisodeOutcome, before: list[torch.Tensor]) -> EpisodeOutcome:
        """Take the last step, and return the way back as the gradient; other parameters keep theirs."""
        with torch.no_grad():
            way = {}
            for name, start, fast in zip(self.names, before, self.fast, strict=True):
                direction = self.inner.direction(self.velocity, name, outcome.gradients[name])
                way[name] = start - (fast - self.inner.lr * direction)
        return outcome._replace(gradients=outcome.gradients | way)

    def _sgd_step(self, loss: torch.Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.fast)
        with torch.no_grad():
            for name, parameter, gradient in zip(self.names, self.fast, gradients, strict=True):
                direction, rate = self.inner.direction(self.velocity, name, gradient), self.inner.rate(name)
                if isinstance(rate, torch.Tensor):
                    parameter.sub_(rate * direction)
                    self.ways[name] = self.ways[name] + direction if name in self.ways else direction
                else:
                    parameter.add_(direction, alpha=-rate)


def _with_native_blocks(model: MetaModel) -> tuple[nn.Module, str]:
    native = with_native_blocks(model)
    if native is None:
        return model, ""
    # In this order: the kernels are only built for a model that can use them.
    found = available("train")
    return (native, "native blocks") if found else (model, f"without native blocks: {found.reason}")
