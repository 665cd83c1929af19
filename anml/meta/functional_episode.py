"""An episode as a function of tensors of fixed shapes: what `compiled`, `graph` and lanes of several trainings share.

A step takes its own gradient (torch.func.grad): with respect to the fast weights, and to a zero "probe" added to the
output of every Linear layer that learns, which is that layer's delta. It returns the next fast weights, and for Linear
layers two buffers with a row for every example of the inner loop (plain_layers.DualLayer), zero where the inner loop
has not been. So every step has the same shapes, one compiled function serves them all, and nothing is read back to the
host: the same program runs eagerly, under torch.compile, in a CUDA graph and, under torch.vmap, for several trainings.
A plain loop chains the steps, and ordinary autograd differentiates once through them.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from anml.data.episodes import Episode
from anml.meta.engine import CheckedEpisodes, EpisodeOutcome, accuracy
from anml.meta.fast import FastEngine, fast_linears
from anml.meta.plain_layers import DualLayer, matrix_convolution, plain_norm, plain_pool, skeleton
from anml.models.meta_model import MetaModel, belongs_to

Weights = dict[str, torch.Tensor]


class FunctionalEpisode:
    """The meta-gradient of an episode. Holds no weights of its own.

    lanes: every weight and every tensor of an episode (but the support index) has a leading dimension, one entry for
    each of several trainings, which have nothing to do with each other.
    inner_lr: of lanes a rate each.
    compiled: torch.compile the functions that the loop is made of.
    matrices: convolutions as products of matrices; for lanes on a GPU.
    """

    def __init__(
        self,
        model: MetaModel,
        inner_names: list[str],
        inner_lr: float | Sequence[float],
        lanes: bool = False,
        compiled: bool = False,
        matrices: bool = False,
    ) -> None:
        self.inner_lr = inner_lr
        self.example_dim = 1 if lanes else 0
        self.linears = fast_linears(model, set(inner_names))
        self.sizes = {name: (layer.in_features, layer.out_features) for name, layer in self.linears.items()}
        in_dual_form = {f"{name}.{part}" for name in self.linears for part in ("weight", "bias")}
        self.fast_names = [name for name in inner_names if name not in in_dual_form]
        self.encoder_is_fixed = all(belongs_to(name, model.head_prefix) for name in inner_names)
        self.gate_is_fixed = not any(belongs_to(name, model.gate_prefix) for name in inner_names)
        wanted = ((plain_norm, lanes), (plain_pool, compiled), (matrix_convolution, matrices))
        self.net = skeleton(model, self.linears, [rewrite for rewrite, needed in wanted if needed])
        self.prepare, self.step, self.query = self._prepare, self._step, self._query
        if lanes:
            self.prepare, self.query = torch.vmap(self._prepare), torch.vmap(self._query)
            self.step = torch.vmap(self._step, in_dims=(0, 0, 0, 0, None, 0, 0, 0))
        if compiled:
            self.prepare, self.step, self.query = map(_compile, (self.prepare, self.step, self.query))

    def run(
        self, slow: Weights, images: torch.Tensor, labels: torch.Tensor, support_index: torch.Tensor, query_start: int
    ) -> EpisodeOutcome:
        """Return loss, accuracy ([lanes], or zero-dimensional) and gradients at the slow weights (that require them).

        images [M, C, H, W], labels [M], behind the dimension of lanes; support_index [T, B] on their device.
        """
        given, extra = self.prepare(slow, images)
        rate = self._rate(images)
        fast, rows = {name: slow[name] for name in self.fast_names}, self._empty_rows(images, support_index.numel())
        places = torch.arange(support_index.numel(), device=images.device).view_as(support_index)
        for where, index in zip(places, support_index, strict=True):
            batch = [self._select(part, index) for part in (given, extra, labels)]
            fast, rows = self.step(slow, fast, rows, rate, where, *batch)
        asked = torch.arange(query_start, labels.shape[self.example_dim], device=images.device)
        batch = [self._select(part, asked) for part in (given, extra, labels)]
        loss, right = self.query({**slow, **fast, **rows}, rate, *batch)
        gradients = torch.autograd.grad(loss.sum(), list(slow.values()))
        return EpisodeOutcome(loss.detach(), right, dict(zip(slow, gradients, strict=True)))

    def _rate(self, like: torch.Tensor) -> torch.Tensor:
        """Return the inner learning rate, [lanes] or zero-dimensional. Made by filling: a graph may hold no copies."""
        if isinstance(self.inner_lr, Sequence):
            return torch.stack([like.new_full((), rate) for rate in self.inner_lr])
        return like.new_full((), self.inner_lr)

    def _empty_rows(self, like: torch.Tensor, count: int) -> Weights:
        lanes = like.shape[: self.example_dim]
        return {
            f"{name}.{part}": like.new_zeros(*lanes, count, width)
            for name, sizes in self.sizes.items()
            for part, width in zip(("inputs", "deltas"), sizes, strict=True)
        }

    def _select(self, part: Any, index: torch.Tensor) -> Any:
        if isinstance(part, dict):
            return {key: self._select(value, index) for key, value in part.items()}
        return part.index_select(self.example_dim, index)

    # The functions below see one lane, and are compiled: no annotations on nested functions, no state left behind.

    def _prepare(self, slow: Weights, images: torch.Tensor) -> tuple[torch.Tensor, Weights]:
        """Compute once what the inner loop does not change: the features [M, d] in place of images, or the gate."""
        if self.encoder_is_fixed:
            return functional_call(self.net, slow, (images,), {"part": "encode"}), {}
        gate = functional_call(self.net, slow, (images,), {"part": "modulate"}) if self.gate_is_fixed else None
        return images, {} if gate is None else {"gate": gate}

    def _step(
        self,
        slow: Weights,
        fast: Weights,
        rows: Weights,
        rate: torch.Tensor,
        where: torch.Tensor,
        given: torch.Tensor,
        extra: Weights,
        labels: torch.Tensor,
    ) -> tuple[Weights, Weights]:
        """Take an SGD step on given [B, ...], labels [B]; return the fast weights and rows after it.

        rate: zero-dimensional. where: int64 [B], the rows that are this step's.
        """
        probes = {f"{name}.probe": given.new_zeros(given.shape[0], size[1]) for name, size in self.sizes.items()}
        gradient = torch.func.grad(self._loss, has_aux=True)
        fixed = {**slow, **rows, **self._rates_of_layers(rate)}
        gradients, seen = gradient({**fast, **probes}, fixed, given, extra, labels)
        fast = {name: fast[name] - rate * gradients[name] for name in fast}
        for name in self.sizes:
            rows = rows | {
                f"{name}.inputs": rows[f"{name}.inputs"].index_copy(0, where, seen[name]),
                f"{name}.deltas": rows[f"{name}.deltas"].index_copy(0, where, gradients[f"{name}.probe"]),
            }
        return fast, rows

    def _loss(
        self, moving: Weights, fixed: Weights, given: torch.Tensor, extra: Weights, labels: torch.Tensor
    ) -> tuple[torch.Tensor, Weights]:
        logits, seen = self._call({**fixed, **moving}, given, extra)
        return cross_entropy(logits, labels), seen

    def _query(
        self, weights: Weights, rate: torch.Tensor, given: torch.Tensor, extra: Weights, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the meta loss and its accuracy."""
        probes = {f"{name}.probe": given.new_zeros(()) for name in self.sizes}
        logits, _ = self._call({**weights, **probes, **self._rates_of_layers(rate)}, given, extra)
        return cross_entropy(logits, labels), accuracy(logits, labels)

    def _rates_of_layers(self, rate: torch.Tensor) -> Weights:
        return {f"{name}.learning_rate": rate for name in self.sizes}

    def _call(self, weights: Weights, given: torch.Tensor, extra: Weights) -> tuple[torch.Tensor, Weights]:
        """Return the logits, and the inputs of the layers in dual form."""
        options = {"part": "classify"} if self.encoder_is_fixed else {"gate": extra.get("gate")}
        logits = functional_call(self.net, weights, (given,), options)
        return logits, {name: self._dual(name).take_seen() for name in self.sizes}

    def _dual(self, name: str) -> DualLayer:
        layer = self.net.get_submodule(name)
        assert isinstance(layer, DualLayer)
        return layer


def run_one(program: FunctionalEpisode, model: MetaModel, episode: Episode) -> EpisodeOutcome:
    """Run a program without lanes on a model and an episode."""
    images, labels, index, start, _ = episode
    return program.run(dict(model.named_parameters()), images, labels, index, start)


def run_lanes(
    program: FunctionalEpisode, models: Sequence[MetaModel], episodes: Sequence[Episode]
) -> list[EpisodeOutcome]:
    """Run a program of lanes on models and their episodes, which are alike but for what is in them."""
    first = episodes[0]
    images, labels = (torch.stack([getattr(e, part) for e in episodes]) for part in ("images", "labels"))
    weights = stack_weights(models)
    return split_lanes(program.run(weights, images, labels, first.support_index, first.query_start))


def stack_weights(models: Sequence[MetaModel]) -> Weights:
    """Return the weights of all models, stacked, as leaves that require gradients."""
    names = [name for name, _ in models[0].named_parameters()]
    return {name: torch.stack([m.get_parameter(name).detach() for m in models]).requires_grad_() for name in names}


def split_lanes(outcome: EpisodeOutcome) -> list[EpisodeOutcome]:
    """Return the outcome of every lane."""
    return [
        EpisodeOutcome(loss, right, {name: gradient[lane] for name, gradient in outcome.gradients.items()})
        for lane, (loss, right) in enumerate(zip(outcome.loss, outcome.accuracy, strict=True))
    ]


def unsupported(model: MetaModel) -> str:
    """Say why an episode of this model is no function of its weights alone, or return an empty string."""
    name = next((name for name, _ in model.named_buffers()), None)
    return f"it has state that an episode would change ({name})" if name else ""


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


# The engine `compiled`: the episode's program (program.py) under torch.compile, on any device.


class CompiledEngine:
    """Compiles at its first episode, which takes a minute; without a compiler it is the fast engine, and says so."""

    name = "compiled"

    def __init__(self, model: MetaModel, inner_names: list[str], inner_lr: float) -> None:
        reason = unsupported(model)
        if reason:
            message = f"the compiled engine cannot run this model: {reason}; use the fast engine"
            raise ValueError(message)
        fast, missing = FastEngine(model, inner_names, inner_lr), missing_compiler(next(model.parameters()).device)
        program = FunctionalEpisode(model, inner_names, inner_lr, compiled=True)
        self.checked = CheckedEpisodes(
            None if missing else lambda episodes: [run_one(program, model, episode) for episode in episodes],
            lambda episodes: [fast.run(episode) for episode in episodes],
            f"not compiled: {missing}" if missing else "",
        )

    @property
    def note(self) -> str:
        """What became of compiling, where it did not go well."""
        return self.checked.note

    def run(self, episode: Episode) -> EpisodeOutcome:
        """Return loss, accuracy and gradients of one episode."""
        return self.checked.run([episode])[0]


def missing_compiler(device: torch.device) -> str:
    """Say which compiler torch.compile would miss on this device, or return an empty string."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"{compiler!r} is not installed (a C++ compiler; CXX names another)"
