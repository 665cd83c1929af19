"""How much there is to compute in a sweep: whether building kernels for it is worth the time."""

import torch
from torch import nn

from anml.config.evaluation import EvalConfig
from anml.evaluate.trial import TrialMaker

# What the native kernels save on a core, measured: seconds for each step of a weight, and for each multiplication of a
# convolution.
_PER_WEIGHT, _PER_MULTIPLICATION = 0.5e-9, 7e-11
# What building them takes.
_BUILD = 60.0


def pays(maker: TrialMaker, config: EvalConfig, runs: int, trajectories: int) -> bool:
    """Say whether a sweep is large enough to build native kernels for; not whether they are built already."""
    return seconds_saved(maker, config, runs, trajectories) >= _BUILD


def seconds_saved(maker: TrialMaker, config: EvalConfig, runs: int, trajectories: int) -> float:
    """Estimate what native kernels save in a sweep."""
    classes, train, test = maker.largest
    examples = classes * (train + test)
    if maker.stage == "images":
        scorings = len(config.score_points(classes)) if config.eval_method == "sequential" else config.epochs
        passes = config.epochs if config.eval_method == "iid" else 1
        images = trajectories * (3 * classes * train * passes + scorings * examples)
    else:
        images = runs * examples
    weights = sum(maker.model.get_parameter(name).numel() for name in maker.trained)
    steps = trajectories * classes * train if config.eval_method == "sequential" else 0
    return steps * weights * _PER_WEIGHT + images * multiplications(maker) * _PER_MULTIPLICATION


def multiplications(maker: TrialMaker) -> int:
    """Count a convolution's multiplications for one image, over all convolutions."""
    count = 0

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal count
        weight = layer.get_parameter("weight")
        count += weight.numel() * output.shape[2] * output.shape[3]

    handles = [m.register_forward_hook(add) for m in maker.model.modules() if isinstance(m, nn.Conv2d)]
    images, _ = maker.data.batch(torch.tensor([0]), torch.tensor([0]), maker.dtype)
    with torch.no_grad():
        maker.model(images)
    for handle in handles:
        handle.remove()
    return count
