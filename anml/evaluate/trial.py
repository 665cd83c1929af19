"""What one run of an evaluation works with: its trajectory, and the model as it is before learning."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from anml.config.evaluation import EvalConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import draw_trajectory
from anml.models.meta_model import MetaModel, draw_kaiming
from anml.models.parameters import belongs_to, select_names
from anml.rng import torch_generator

# Images encoded at once: large enough to be efficient, small enough for any device.
ENCODE_BATCH = 256


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
    """

    shape: Shape
    model: MetaModel
    trained_names: list[str]
    encoder_is_frozen: bool
    train_inputs: torch.Tensor
    train_labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor


def make_trial(
    model: MetaModel, config: EvalConfig, data: ClassImages, shape: Shape, run: int, dtype: torch.dtype = torch.float32
) -> Trial:
    """Draw a run's trajectory and re-initialise a copy of the model for it."""
    trajectory = draw_trajectory(data, shape.classes, shape.train_examples, shape.test_examples, config.seed, run)
    train = trajectory.images(data, trajectory.train_examples, dtype)
    test = trajectory.images(data, trajectory.test_examples, dtype)
    labels = torch.arange(shape.classes, device=train.device)
    train_labels = labels.repeat_interleave(shape.train_examples)
    test_labels = labels.repeat_interleave(shape.test_examples)

    model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    trained = select_names(model, config.opt_params)
    reinitialise(model, config, train, train_labels, run)
    frozen = config.eval_method == "zero_shot" or all(belongs_to(name, model.head_prefix) for name in trained)
    if frozen:
        train, test = encode(model, train), encode(model, test)
    return Trial(shape, model, trained, frozen, train, train_labels, test, test_labels)


def encode(model: MetaModel, images: torch.Tensor) -> torch.Tensor:
    """Return the features [n, d] of images [n, C, H, W], in batches."""
    with torch.no_grad():
        return torch.cat([model.encode(batch) for batch in images.split(ENCODE_BATCH)])


def reinitialise(model: MetaModel, config: EvalConfig, images: torch.Tensor, labels: torch.Tensor, run: int) -> None:
    """Re-draw the chosen parameters of a model in place, and maybe solve for its output layer."""
    chosen = select_names(model, config.reinit_params)
    with torch.no_grad():
        for name in chosen:
            _redraw(name, model.get_parameter(name), config, run)
        if config.reinit_method == "lstsq" or config.eval_method == "zero_shot":
            picked = support_examples(labels, config.init_size, config.seed, run)
            solve_head(model.head, encode_to_head(model, images[picked]), labels[picked])


def _redraw(name: str, parameter: nn.Parameter, config: EvalConfig, run: int) -> None:
    if parameter.dim() > 1:
        generator = torch_generator(config.seed, "reinitialise", run, name)
        parameter.copy_(draw_kaiming(tuple(parameter.shape), generator))
    elif name.endswith("weight"):
        parameter.fill_(1.0)  # The gain of a norm.
    elif config.reinit_bias == "zero":
        parameter.zero_()


def support_examples(labels: torch.Tensor, count: int, seed: int, run: int) -> torch.Tensor:
    """Return the indexes of `count` examples spread evenly over the classes (0: one per class)."""
    classes = int(labels.max()) + 1
    per_class = len(labels) // classes
    total = min(count or classes, len(labels))
    generator = torch_generator(seed, "support", run)
    # Rank r of a class is taken only when all classes have given rank r - 1; the last rank from random classes.
    full, rest = divmod(total, classes)
    starts = torch.arange(classes)[:, None] * per_class
    chosen = (starts + torch.arange(full)).reshape(-1)
    extra = torch.randperm(classes, generator=generator)[:rest] * per_class + full
    return torch.cat([chosen, extra]).sort().values.to(labels.device)


def encode_to_head(model: MetaModel, images: torch.Tensor) -> torch.Tensor:
    """Return what the output layer receives, [n, in_features], for images [n, C, H, W]."""
    received: list[torch.Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    try:
        with torch.no_grad():
            for batch in images.split(ENCODE_BATCH):
                model(batch)
    finally:
        handle.remove()
    return torch.cat(received)


def solve_head(head: nn.Linear, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Set weight and bias to the minimum-norm least-squares solution for one-hot targets.

    inputs [n, in_features], labels int64 [n]. Solved in float64 with singular values below n * eps cut off: features
    of fewer examples than dimensions are rank-deficient, where a plain solve returns noise.
    """
    ones = torch.ones(len(inputs), 1, dtype=torch.float64, device=inputs.device)
    design = torch.cat([inputs.double(), ones], dim=1)
    targets = nn.functional.one_hot(labels, head.out_features).double()
    solution = torch.linalg.pinv(design) @ targets
    head.weight.copy_(solution[:-1].T)
    head.bias.copy_(solution[-1])
