"""Output layers by name: linear, MLP, and metric, whose logits are similarities to one weight row per class."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.functional import normalize

from anml.config.model_args import LinearHeadArgs, MetricHeadArgs, MlpHeadArgs


class MetricHead(nn.Module):
    """Logits t * cos(x, w_c) or -t * |x - w_c|^2 for features x [n, d] and weight rows w_c [classes, d]; no bias.

    t, `temperature`, is a number, or a parameter of shape [] (Chen et al. 2021, arXiv 2003.04390, have it for the
    cosine). Not an nn.Linear, though its weight has the same shape: what holds of logits that are linear in weights
    (least squares, SGD in dual form) does not hold of these.
    """

    def __init__(self, features: int, args: MetricHeadArgs) -> None:
        super().__init__()
        self.in_features, self.out_features, self.metric = features, args.num_classes, args.metric
        self.start_temperature = args.start_temperature
        self.weight = nn.Parameter(torch.empty(args.num_classes, features))
        self.temperature: nn.Parameter | float = self.start_temperature
        if args.learns_temperature:
            self.temperature = nn.Parameter(torch.tensor(self.start_temperature))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes] of features [n, d]."""
        if self.metric == "cosine":
            return self.temperature * (normalize(features) @ normalize(self.weight).T)
        # |x - w|^2 written out: no [n, classes, d] tensor of differences.
        squares = features.square().sum(dim=1, keepdim=True) + self.weight.square().sum(dim=1)
        return self.temperature * (2 * features @ self.weight.T - squares)


# What the last layer of a model may be. Both have `weight` [classes, d], `in_features` and `out_features`.
OutputLayer: TypeAlias = nn.Linear | MetricHead


def linear_head(args: LinearHeadArgs, features: int) -> nn.Sequential:
    """Return one Linear layer, `linear`."""
    return _named("linear", nn.Linear(features, args.num_classes))


def mlp_head(args: MlpHeadArgs, features: int) -> nn.Sequential:
    """Return Linear layers with ReLU between them, `mlp.0`, `mlp.2`, ..."""
    mlp = nn.Sequential()
    for width in args.hidden_layers:
        mlp.extend([nn.Linear(features, width), nn.ReLU()])
        features = width
    mlp.append(nn.Linear(features, args.num_classes))
    return _named("mlp", mlp)


def metric_head(args: MetricHeadArgs, features: int) -> nn.Sequential:
    """Return a metric layer, `metric`."""
    return _named("metric", MetricHead(features, args))


HEADS: Mapping[str, Callable[[Any, int], nn.Sequential]] = {
    "linear-classifier": linear_head,
    "mlp-classifier": mlp_head,
    "metric-classifier": metric_head,
}


def _named(name: str, module: nn.Module) -> nn.Sequential:
    sequential = nn.Sequential()
    sequential.add_module(name, module)
    return sequential
