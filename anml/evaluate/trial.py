"""What one run of an evaluation works with: its trajectory, and the model as it is before learning."""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from anml.config.evaluation import EvalConfig
from anml.data.class_images import Batch, ClassImages
from anml.data.episodes import draw_trajectory
from anml.errors import ConfigError
from anml.models.heads import MetricHead
from anml.models.meta_model import MetaModel, draw_kaiming
from anml.models.parameters import belongs_to, select_names
from anml.rng import torch_generator

# Images in one forward pass: large enough to be efficient, small enough for any device.
FORWARD_BATCH = 256


@dataclass(frozen=True)
class Shape:
    """The size of a trial: classes to learn, and examples of each to learn from and to be tested on."""

    classes: int
    train_examples: int
    test_examples: int


@dataclass(frozen=True)
class Trial:
    """One run, ready to learn from.

    model: re-initialised, never changed (learners copy it). train_inputs, test_inputs: images [n, C, H, W], or their
    features [n, d] when `encoder_is_frozen`; class after class, labels 0, 1, 2, ... in order of learning.

    The model is in eval mode throughout (as in higherANML): InstanceNorm knows no difference, a BatchNorm keeps to the
    statistics of its training, or a batch of one example would be normalised to nothing.
    """

    shape: Shape
    model: MetaModel
    trained_names: list[str]
    encoder_is_frozen: bool
    train_inputs: torch.Tensor
    train_labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor

    @property
    def part(self) -> Literal["all", "classify"]:
        """Which part of the model the inputs go through."""
        return "classify" if self.encoder_is_frozen else "all"


def make_trial(
    model: MetaModel, config: EvalConfig, data: ClassImages, shape: Shape, run: int, dtype: torch.dtype = torch.float32
) -> Trial:
    """Draw a run's trajectory and re-initialise a copy of the model for it. Raises ConfigError, DataError."""
    if shape.classes > model.head.out_features:
        message = f"{shape.classes} classes do not fit the {model.head.out_features} outputs of this model"
        raise ConfigError(message)
    model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    for name in select_names(model, config.reinit_params):
        _redraw(name, model, config, run)
    learns = config.eval_method != "zero_shot"
    trained = select_names(model, config.opt_params) if learns else []
    frozen = all(belongs_to(name, model.head_prefix) for name in trained)
    (train, train_labels), (test, test_labels) = _examples(config, data, shape, run, dtype)
    if frozen:
        train, test = forward(model, train, "encode"), forward(model, test, "encode")
    trial = Trial(shape, model, trained, frozen, train, train_labels, test, test_labels)
    if config.reinit_method == "lstsq" or not learns:
        picked = support_examples(train_labels, config.init_size, config.seed, run)
        solve_head(_linear_head(model), head_inputs(trial, picked), train_labels[picked])
    return trial


def _examples(config: EvalConfig, data: ClassImages, shape: Shape, run: int, dtype: torch.dtype) -> tuple[Batch, Batch]:
    """Return images and labels to learn from, and those to be tested on; classes are numbered in order of learning."""
    trajectory = draw_trajectory(data, shape.classes, shape.train_examples, shape.test_examples, config.seed, run)
    labels = torch.arange(shape.classes, device=data.images.device)
    train = trajectory.images(data, trajectory.train_examples, dtype)
    test = trajectory.images(data, trajectory.test_examples, dtype)
    return (
        (train, labels.repeat_interleave(shape.train_examples)),
        (test, labels.repeat_interleave(shape.test_examples)),
    )


def forward(model: MetaModel, inputs: torch.Tensor, part: Literal["all", "encode", "classify"]) -> torch.Tensor:
    """Return what a part of a model makes of inputs [n, ...], in batches and without a graph."""
    with torch.no_grad():
        return torch.cat([model(batch, part=part) for batch in inputs.split(FORWARD_BATCH)])


@torch.no_grad()
def _redraw(name: str, model: MetaModel, config: EvalConfig, run: int) -> None:
    parameter, layer = model.get_parameter(name), model.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, nn.BatchNorm2d):
        layer.reset_running_stats()  # They were of the layers that are being re-drawn.
    if isinstance(layer, MetricHead) and name.endswith("temperature"):
        parameter.fill_(layer.start_temperature)
    elif parameter.dim() > 1:
        generator = torch_generator(config.seed, "reinitialise", run, name)
        parameter.copy_(draw_kaiming(tuple(parameter.shape), generator))
    elif name.endswith("weight"):
        parameter.fill_(1.0)  # The gain of a norm.
    elif config.reinit_bias == "zero":
        parameter.zero_()


def support_examples(labels: torch.Tensor, count: int, seed: int, run: int) -> torch.Tensor:
    """Return the indexes of `count` random examples (0: the first of each class; all, if there are fewer)."""
    if count == 0:
        starts = torch.ones_like(labels, dtype=torch.bool)
        starts[1:] = labels[1:] != labels[:-1]
        return starts.nonzero()[:, 0]
    order = torch.randperm(len(labels), generator=torch_generator(seed, "support", run))
    return order[:count].to(labels.device)


def _linear_head(model: MetaModel) -> nn.Linear:
    """Return the output layer that least squares will set. Raises ConfigError for one that it cannot."""
    if not isinstance(model.head, nn.Linear):
        message = (
            f"{model.head_layer} is a metric layer: least squares (eval_method: zero_shot, reinit_method: lstsq) "
            "needs logits that are linear in the weights, use reinit_method: kaiming"
        )
        raise ConfigError(message)
    return model.head


def head_inputs(trial: Trial, picked: torch.Tensor) -> torch.Tensor:
    """Return what the output layer receives, [n, in_features], for the training inputs with these indexes [n]."""
    received: list[torch.Tensor] = []
    handle = trial.model.head.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    try:
        forward(trial.model, trial.train_inputs[picked], trial.part)
    finally:
        handle.remove()
    return torch.cat(received)


@torch.no_grad()
def solve_head(head: nn.Linear, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Set weight and bias to the minimum-norm least-squares solution for one-hot targets (0 for unused outputs).

    inputs [n, in_features], labels int64 [n]. Solved in float64, without the directions in which the inputs differ by
    no more than their own rounding: channels that an InstanceNorm centres and no ReLU clips add up to a constant, and
    to tell that from the bias takes weights of 1e6, which undo the accuracy once they are float32.
    """
    design = nn.functional.pad(inputs.double().cpu(), (0, 1), value=1.0)
    targets = nn.functional.one_hot(labels.cpu()).double()
    cut = max(torch.finfo(inputs.dtype).eps, max(design.shape) * torch.finfo(torch.float64).eps)
    # By singular values, as numpy does it. The faster gelsy starts from uninitialised memory (pytorch/pytorch#187411).
    solution = torch.linalg.lstsq(design, targets, rcond=cut, driver="gelsd").solution
    head.weight.zero_()[: targets.shape[1]] = solution[:-1].T.to(head.weight)
    head.bias.zero_()[: targets.shape[1]] = solution[-1].to(head.bias)
