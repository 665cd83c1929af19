"""What one run of an evaluation works with: its examples, and the model as it is before it learns.

Layers that no learning changes see each image once (with `shifts`, once at each place); a stage says how far into the
model the inputs already are:

images    -> encode ->  features  -> all of the head but its output layer ->  head  -> output layer -> logits
"""

import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import one_hot, pad

from anml.config.evaluation import ADAM, EvalConfig, Stepper
from anml.data.class_images import ClassImages
from anml.data.episodes import draw_run
from anml.errors import CheckpointError, ConfigError
from anml.models.heads import MetricHead
from anml.models.meta_model import MetaModel, belongs_to, draw_kaiming, select_names
from anml.optim import make_stepper
from anml.rng import torch_generator

Stage = Literal["images", "features", "head"]
Weights = dict[str, torch.Tensor]


def latest_stage(model: MetaModel, changed: Iterable[str]) -> Stage:
    """Return the last stage before all parameters with these names."""
    changed = list(changed)
    if all(belongs_to(name, model.head_layer) for name in changed):
        return "head"
    return "features" if all(belongs_to(name, model.head_prefix) for name in changed) else "images"


def advance(model: MetaModel, images: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Return what a stage receives of images [n, C, H, W]."""
    if stage == "images":
        return images
    if stage == "head":
        return head_inputs(model, images, "images")
    with torch.no_grad():
        return torch.cat([model(part, part="encode") for part in images.split(_batch_size(images))])


def shifted(images: torch.Tensor, shifts: int, step: int) -> Iterator[torch.Tensor]:
    """Yield images [n, C, H, W], moved by up to `shifts` steps of so many pixels each way; edges are repeated."""
    height, width = images.shape[-2:]
    padded = pad(images, (shifts * step,) * 4, mode="replicate")
    for top, left in product(range(0, 2 * shifts * step + 1, step), repeat=2):
        yield padded[..., top : top + height, left : left + width].contiguous()


def head_inputs(model: MetaModel, inputs: torch.Tensor, stage: Stage) -> torch.Tensor:
    """Return what the output layer receives, [n, in_features], of what a stage receives."""
    if stage == "head":
        return inputs
    received: list[torch.Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, arguments: received.append(arguments[0]))
    try:
        predict(model, inputs, stage)
    finally:
        handle.remove()
    return torch.cat(received)


def classify(model: MetaModel, inputs: torch.Tensor, stage: Stage, weights: Weights | None = None) -> torch.Tensor:
    """Return logits [n, outputs] of what a stage receives; `weights` replace parameters of these names."""
    weights = weights or {}
    if stage == "head":
        prefix = f"{model.head_layer}."
        of_head = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        return functional_call(model.head, of_head, (inputs,))
    return functional_call(model, weights, (inputs,), {"part": "classify" if stage == "features" else "all"})


@torch.no_grad()
def predict(model: MetaModel, inputs: torch.Tensor, stage: Stage, weights: Weights | None = None) -> torch.Tensor:
    """Return logits as `classify` does, in batches and without a graph."""
    if stage != "images":
        return classify(model, inputs, stage, weights)
    return torch.cat([classify(model, part, stage, weights) for part in inputs.split(_batch_size(inputs))])


def _batch_size(images: torch.Tensor) -> int:
    # On a CPU small tensors stay in its caches, and malloc hands out the same pages again.
    return 512 if images.is_cuda else 16


# Of all designs that are solved at once: 10 runs of 9,000 x 2,305 in float64.
_SOLVED_AT_ONCE = 2**31  # bytes


class Shape(NamedTuple):
    """The size of a run: classes to learn, and examples of each to learn from and to be tested on."""

    classes: int
    train_examples: int
    test_examples: int


@dataclass(frozen=True)
class PreparedRun:
    """One run, ready to learn from.

    model: re-initialised, never changed (learners copy it). trained_names: the parameters that learn. redrawn_names:
    those that differ from run to run from the start, drawn or solved by least squares. train_inputs, test_inputs: what
    `stage` receives, images [n, C, H, W] or their features [n, d]; class after class, labels 0, 1, 2, ... in order of
    learning. betas: of the Adam that learns; stepper: what learns, if it is another optimizer too.

    The model is in eval mode throughout (as in higherANML): for an InstanceNorm this makes no difference, a BatchNorm
    keeps the statistics of its training, which would otherwise normalise a batch of one example to nothing.
    """

    shape: Shape
    run: int
    model: MetaModel
    trained_names: list[str]
    redrawn_names: list[str]
    stage: Stage
    train_inputs: torch.Tensor
    train_labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor
    betas: tuple[float, float] = (0.9, 0.999)
    stepper: Stepper = ADAM


class RunPreparer:
    """Prepares the runs of a sweep; what they have in common is computed once."""

    def __init__(
        self, model: MetaModel, config: EvalConfig, data: ClassImages, dtype: torch.dtype = torch.float32
    ) -> None:
        """Take a trained model, which stays as it is, and the split of classes it has never seen."""
        self.config, self.data, self.dtype = config, data, dtype
        self.model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
        # An output layer that starts at zero starts anew, whether it is named or not.
        head = ("head",) if config.reinit_method == "zero" else ()
        self.redrawn = select_names(model, (*config.reinit_params, *head))
        self.trained = select_names(model, config.opt_params) if config.protocol.learns else []
        self.stage: Stage = latest_stage(model, self.trained)
        before_inputs = {"images": None, "features": model.head_prefix, "head": model.head_layer}[self.stage]
        encodes_alike = all(belongs_to(name, before_inputs) for name in self.redrawn)
        # What computes the inputs that all runs share; none where a run re-draws what lies before its inputs.
        self.encoder = copy.deepcopy(self.model) if encodes_alike else None
        self.features: dict[int, torch.Tensor] = {}  # By class.
        self.largest = Shape(max(config.classes), max(config.train_examples), max(config.test_examples))

    def count_trained(self) -> int:
        """Count the weights that learn."""
        return sum(self.model.get_parameter(name).numel() for name in self.trained)

    def example(self, stage: Stage) -> torch.Tensor:
        """Return what a stage receives of one image, to measure with."""
        return advance(self.model, self.data.batch(torch.tensor([0]), torch.tensor([0]), self.dtype)[0], stage)

    @torch.no_grad()
    def layer_outputs(self, stage: Stage) -> list[tuple[nn.Module, torch.Tensor]]:
        """Return the layers that one example passes from a stage on, each with its output."""
        example, passed = self.example(stage), list[Any]()
        layers = [module for module in self.model.modules() if not any(module.children())]
        handles = [m.register_forward_hook(lambda layer, _, output: passed.append((layer, output))) for m in layers]
        classify(self.model, example, stage)
        for handle in handles:
            handle.remove()
        return passed

    def make(self, shape: Shape, runs: Sequence[int]) -> list[PreparedRun]:
        """Draw the classes and examples of these runs and re-initialise a copy of the model for each.

        Raises ConfigError, DataError, CheckpointError.
        """
        if shape.classes > self.model.head.out_features:
            message = f"{shape.classes} classes do not fit the {self.model.head.out_features} outputs of this model"
            raise ConfigError(message)
        prepared_runs = [self._draw(shape, run) for run in runs]
        if self.config.needs_least_squares:
            _solve_heads(prepared_runs, self.config)
        return prepared_runs

    def _draw(self, shape: Shape, run: int) -> PreparedRun:
        """Return a run whose head is not solved yet."""
        model = copy.deepcopy(self.model)
        for name in self.redrawn:
            _redraw(name, model, self.config, run)
        solved = ("head",) if self.config.needs_least_squares else ()
        drawn = draw_run(self.data, *shape, self.config.seed, run)
        labels = torch.arange(shape.classes, device=self.data.images.device)
        return PreparedRun(
            shape, run, model, self.trained, select_names(model, (*self.redrawn, *solved)), self.stage,
            self._inputs(model, drawn.classes, drawn.train_examples), labels.repeat_interleave(shape.train_examples),
            self._inputs(model, drawn.classes, drawn.test_examples), labels.repeat_interleave(shape.test_examples),
            self.config.betas, self.config.stepper,
        )  # fmt: skip

    def _inputs(self, model: MetaModel, classes: torch.Tensor, examples: torch.Tensor) -> torch.Tensor:
        """Return the inputs [n * k, ...] of classes [n], examples [n, k]."""
        if self.encoder is None:
            images, _ = self.data.batch(classes.repeat_interleave(examples.shape[1]), examples.flatten(), self.dtype)
            return self._advance(model, images)
        rows = examples.to(self.data.images.device)
        for index in set(classes.tolist()) - self.features.keys():
            # A class is always one batch, so that no value depends on which others were asked for.
            whole = torch.arange(self.data.examples_per_class)
            images, _ = self.data.batch(torch.full_like(whole, index), whole, self.dtype)
            self.features[index] = self._advance(self.encoder, images)
        return torch.cat([self.features[index][row] for index, row in zip(classes.tolist(), rows, strict=True)])

    def _advance(self, model: MetaModel, images: torch.Tensor) -> torch.Tensor:
        """Return what the stage receives of images: with `shifts`, its mean over the images moved by a few pixels."""
        if not self.config.shifts:
            return advance(model, images, self.stage)
        moved = shifted(images, self.config.shifts, self.config.shift_step or 1)
        places = (advance(model, copies, self.stage) for copies in moved)
        return functools.reduce(torch.add, places) / (2 * self.config.shifts + 1) ** 2


@torch.no_grad()
def _redraw(name: str, model: MetaModel, config: EvalConfig, run: int) -> None:
    """Re-initialise a parameter in place."""
    parameter, layer = model.get_parameter(name), model.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, nn.BatchNorm2d):
        layer.reset_running_stats()  # They were of the layers that are being re-drawn.
    if isinstance(layer, MetricHead) and name.endswith("temperature"):
        parameter.fill_(layer.start_temperature)
    elif name == f"{model.head_layer}.weight" and config.reinit_method == "zero":
        parameter.zero_()
    elif parameter.dim() > 1:
        generator = torch_generator(config.seed, "reinitialise", run, name)
        parameter.copy_(draw_kaiming(tuple(parameter.shape), generator))
    elif name.endswith("weight"):
        parameter.fill_(1.0)  # The gain of a norm.
    elif config.reinit_bias == "zero":
        parameter.zero_()


def check_head(model: MetaModel, config: EvalConfig) -> None:
    """Raise ConfigError where the output layer cannot start, or nothing can learn, as the config says."""
    learned = select_names(model, config.opt_params) if config.protocol.learns else []
    problem = ""
    if config.needs_least_squares:
        if not isinstance(model.head, nn.Linear):
            problem = f"{model.head_layer} is a metric layer: least squares (zero_shot, lstsq) need a linear one; use "
            problem += "reinit_method: kaiming, and an eval_method that learns"
    elif config.reinit_method == "zero":
        if isinstance(model.head, MetricHead):
            problem = f"{model.head_layer} is a metric layer, where zeros are like nothing: use reinit_method: kaiming"
        elif learned and f"{model.head_layer}.weight" not in learned:
            problem = "opt_params: an output layer of zeros (reinit_method: zero) that does not learn gives the layers "
            problem += "before it no gradient; add head"
    if config.shifts and latest_stage(model, learned) == "images":
        problem = "shifts: with these opt_params the encoder learns, and its features cannot be averaged beforehand; "
        problem += "use opt_params: head, or remove shifts"
    if problem:
        raise ConfigError(problem)
    if learned:  # Torch says whether it has such an optimizer and schedule.
        make_stepper(config.stepper, config.lr[0], [nn.Parameter(torch.zeros(1))])


def _solve_heads(prepared_runs: Sequence[PreparedRun], config: EvalConfig) -> None:
    """Set output layers, of runs of one shape, to least squares for one-hot targets; unused outputs become 0."""
    check_head(prepared_runs[0].model, config)
    inputs, targets = zip(*(_support(prepared, config) for prepared in prepared_runs), strict=True)
    # A CPU gains nothing from more at once.
    size = max(1, _SOLVED_AT_ONCE // (inputs[0].numel() * 8)) if inputs[0].is_cuda else 1
    for first in range(0, len(prepared_runs), size):
        now = slice(first, first + size)
        weights, biases = solve(torch.stack(inputs[now]), torch.stack(targets[now]))
        for prepared, weight, bias in zip(prepared_runs[now], weights, biases, strict=True):
            set_head(prepared.model.head, weight, bias)


def _support(prepared: PreparedRun, config: EvalConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return head inputs [n, d] and one-hot targets [n, classes] of the examples that the solution is for."""
    if config.init_size and config.init_examples == "first":
        picked = torch.arange(min(config.init_size, len(prepared.train_labels)))
    else:
        picked = support_examples(prepared.train_labels, config.init_size, config.seed, prepared.run)
    inputs = head_inputs(prepared.model, prepared.train_inputs[picked], prepared.stage)
    if not inputs.isfinite().all():
        message = "least squares: features of this model are not finite: training diverged; take an earlier checkpoint"
        raise CheckpointError(message)
    return inputs, one_hot(prepared.train_labels[picked], prepared.shape.classes)


def support_examples(labels: torch.Tensor, count: int, seed: int, run: int) -> torch.Tensor:
    """Return the indexes of `count` random examples (0: the first of each class; all, if there are fewer)."""
    if count == 0:
        starts = torch.ones_like(labels, dtype=torch.bool)
        starts[1:] = labels[1:] != labels[:-1]
        return starts.nonzero()[:, 0]
    order = torch.randperm(len(labels), generator=torch_generator(seed, "support", run))
    return order[:count].to(labels.device)


@torch.no_grad()
def solve(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights [..., C, d] and biases [..., C], float64, of the minimum-norm least-squares solution.

    inputs [..., n, d], targets [..., n, C]. By orthogonal factors, never by the normal equations, which square the
    condition number: QR, then the singular values of the small triangle (as LAPACK's gelsd, but on any device and for
    a batch). Without the directions in which the inputs differ by no more than their own rounding: channels that an
    InstanceNorm centres and no ReLU clips add up to a constant, and to tell that from the bias takes weights of 1e6,
    which undo the accuracy once they are float32.
    """
    design = pad(inputs.double(), (0, 1), value=1.0)
    rounding = max(torch.finfo(inputs.dtype).eps, max(design.shape[-2:]) * torch.finfo(torch.float64).eps)
    wide = design.shape[-2] < design.shape[-1]
    q, r = torch.linalg.qr(design.mT if wide else design)
    left, values, right = torch.linalg.svd(r.mT if wide else r, full_matrices=False)
    if wide:
        right = right @ q.mT
    else:
        left = q @ left
    kept = values > rounding * values[..., :1]
    inverse = torch.where(kept, 1 / values.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    solution = right.mT @ (inverse[..., None] * (left.mT @ targets.double()))
    return solution[..., :-1, :].mT, solution[..., -1, :]


@torch.no_grad()
def set_head(head: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Set the first rows of an output layer to weight [C, d] and bias [C], the others to zero."""
    for name, values in (("weight", weight), ("bias", bias)):
        parameter = head.get_parameter(name)
        parameter.zero_()[: len(values)] = values.to(parameter)
