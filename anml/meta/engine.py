"""The small interface that every training engine has."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import higher
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from anml.data.episodes import Episode
from anml.models.meta_model import MetaModel
from anml.native import available
from anml.native.blocks import with_native_blocks


class EpisodeOutcome(NamedTuple):
    """What one episode yields.

    loss, accuracy: of the meta loss's examples, zero-dimensional tensors (not read back: that would stall a GPU).
    gradients: of the loss with respect to the weights before the inner loop, by parameter name.
    """

    loss: torch.Tensor
    accuracy: torch.Tensor
    gradients: dict[str, torch.Tensor]


class Engine(Protocol):
    """Runs the inner loop of an episode and differentiates what follows from it. Changes no weights."""

    name: str
    # What a user should know beside the choice itself, such as a fallback; it may change at the first episode.
    note: str

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients of one episode."""
        ...


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the fraction of right predictions, a zero-dimensional float tensor."""
    return (logits.argmax(dim=1) == labels).float().mean()


# A quick way of running episodes that the plain way vouches for: compilers and transforms err, and say nothing.

RunEpisodes = Callable[[Sequence[Episode]], list[EpisodeOutcome]]
# Relative errors of gradients, by episode and parameter.
Errors = dict[tuple[int, str], float]

# No rounding explains more: in float32, where no near-tie flips, it is 1e-4; in float64 it is 1e-12. Mistakes of
# PyTorch were 1e-2 and more.
_IN_FLOAT32, IN_FLOAT64 = 5e-3, 1e-6


class CheckedEpisodes:
    """Checks the quick way at the first episodes. Where it fails or errs, the plain way goes on, and `note` says so:
    PyTorch has given wrong second derivatives for models it could compile or batch (plain_layers.py).
    """  # noqa: D205

    def __init__(
        self,
        quick: RunEpisodes | None,
        plain: RunEpisodes,
        note: str = "",
        check: Callable[[Sequence[Episode]], str] | None = None,
    ) -> None:
        """Take the quick way, or None with a note that says why there is none.

        check: says what is wrong with the quick way, or nothing (default: both ways in the median of five episodes).
        """
        self.quick, self.plain, self.note, self.check = quick, plain, note, check
        self.is_checked = False

    def run(self, episodes: Sequence[Episode]) -> list[EpisodeOutcome]:
        """Return the outcomes of episodes, one for each model."""
        if self.quick is None:
            return self.plain(episodes)
        return self.quick(episodes) if self.is_checked else self._first(self.quick, episodes)

    def _first(self, quick: RunEpisodes, episodes: Sequence[Episode]) -> list[EpisodeOutcome]:
        self.is_checked = True
        try:
            problem = self.check(episodes) if self.check else median_mistake(quick, self.plain, episodes)
            if not problem:
                return quick(episodes)
        except Exception as error:  # Whatever a compiler throws: the plain way can do without it.
            problem = f"{type(error).__name__}: {_first_line(str(error))}"
        self.quick, self.note = None, f"fell back to the fast engine: {problem}"
        return self.plain(episodes)


def median_mistake(quick: RunEpisodes, plain: RunEpisodes, episodes: Sequence[Episode]) -> str:
    """Say which gradient the quick way gets wrong in the median of five episodes, or return an empty string.

    In float32 a single episode proves nothing: where two values in a max-pooling, or a ReLU and zero, are equal but for
    rounding, the two ways may choose differently, and the whole gradient moves by 1e-3 to 3e-2.
    """
    errors = [gradient_errors(quick(turned), plain(turned)) for turned in zip(*map(_turned, episodes), strict=True)]
    return mistake({key: statistics.median(own[key] for own in errors) for key in errors[0]}, _IN_FLOAT32)


def gradient_errors(found: Sequence[EpisodeOutcome], expected: Sequence[EpisodeOutcome]) -> Errors:
    """Return the relative error of every gradient; it is 0 where what is expected is not finite. Reads values back."""
    errors: Errors = {}
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        norms = {name: gradient.norm() for name, gradient in other.gradients.items()}
        # Against all of them together as well: a gradient that is truly zero is noise in either.
        floor = 0.01 * torch.stack(list(norms.values())).norm()
        for name, norm in norms.items():
            error = (one.gradients[name] - other.gradients[name]).norm() / torch.maximum(norm, floor)
            errors[index, name] = float(error.nan_to_num(torch.inf)) if bool(norm.isfinite()) else 0.0
    return errors


def mistake(errors: Errors, tolerance: float) -> str:
    """Say which gradient is off by more than the tolerance, or return an empty string."""
    for (_, name), error in errors.items():
        if error > tolerance:
            return f"its gradient of {name} is off by {100 * error:.2g}%, a mistake of this PyTorch"
    return ""


def _turned(episode: Episode) -> list[Episode]:
    """Return an episode as it is, by three quarter turns, and mirrored: each has near-ties of its own."""
    images = [*(torch.rot90(episode.images, turns, (-2, -1)) for turns in range(4)), episode.images.flip(-1)]
    # Contiguous as ever: for other strides a compiler would compile again.
    return [episode._replace(images=turned.contiguous()) for turned in images]


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")


# The slow and obvious engine, written with the `higher` library: the oracle that other engines are tested against.


class ReferenceEngine:
    """Differentiates through SGD steps that `higher` keeps the whole graph of."""

    name = "reference"
    note = ""

    def __init__(self, model: MetaModel, inner_names: list[str], inner_lr: float) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD([model.get_parameter(name) for name in inner_names], lr=inner_lr)

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients of one episode."""
        names = [name for name, _ in self.model.named_parameters()]
        with higher.innerloop_ctx(self.model, self.optimizer, copy_initial_weights=False) as (net, inner):
            for index in episode.support_index:
                inner.step(cross_entropy(net(episode.images[index]), episode.labels[index]))
            query = slice(episode.query_start, None)
            logits = net(episode.images[query])
            labels = episode.labels[query]
            loss = cross_entropy(logits, labels)
            gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        return EpisodeOutcome(loss.detach(), accuracy(logits, labels), dict(zip(names, gradients, strict=True)))


# Training methods without the second-order gradient, for comparison.
#
# `meta-first-order`: the gradient at the fast weights is used as if it were the meta-gradient (FOMAML, Finn et al.
# 2017, section 5.2). `sequential_episodic`: the same episodes, but the model keeps the weights of the inner loop and is
# then updated on the meta loss: ordinary sequential learning, nothing is differentiated through it.


class FirstOrderEngine:
    """Plain SGD in the inner loop, plain gradient after it; `native`: with blocks in C++ where the model has such."""

    name = "first-order"

    def __init__(
        self, model: MetaModel, inner_names: list[str], inner_lr: float, keep_fast_weights: bool, native: bool = False
    ) -> None:
        self.model = model
        self.classify, self.note = _with_native_blocks(model) if native else (model, "")
        self.inner = [model.get_parameter(name) for name in inner_names]
        self.inner_lr = inner_lr
        self.keep_fast_weights = keep_fast_weights

    @property
    def is_native(self) -> bool:
        """Whether blocks run in C++."""
        return self.classify is not self.model

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients; unless fast weights are kept, the weights are put back."""
        before = [] if self.keep_fast_weights else [p.detach().clone() for p in self.inner]
        for index in episode.support_index:
            self._sgd_step(cross_entropy(self.classify(episode.images[index]), episode.labels[index]))
        query = slice(episode.query_start, None)
        logits, labels = self.classify(episode.images[query]), episode.labels[query]
        loss = cross_entropy(logits, labels)
        parameters = dict(self.model.named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for parameter, value in zip(self.inner, before, strict=not self.keep_fast_weights):
                parameter.copy_(value)
        return EpisodeOutcome(loss.detach(), accuracy(logits, labels), dict(zip(parameters, gradients, strict=True)))

    def _sgd_step(self, loss: torch.Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.inner)
        with torch.no_grad():
            for parameter, gradient in zip(self.inner, gradients, strict=True):
                parameter.add_(gradient, alpha=-self.inner_lr)


def _with_native_blocks(model: MetaModel) -> tuple[nn.Module, str]:
    """Return what classifies a model's images fastest, and a note of it."""
    native = with_native_blocks(model)
    if native is None:
        return model, ""
    # In this order: the kernels are only built for a model that can use them.
    found = available("train")
    return (native, "native blocks") if found else (model, f"without native blocks: {found.reason}")
