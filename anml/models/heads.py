"""Output layers by name: linear, MLP, and metric, whose logits are similarities to one weight row per class."""

from typing import TypeAlias

import torch
from torch import nn
from torch.nn.functional import normalize

from anml.config.model_args import LinearHeadArgs, MetricHeadArgs, MlpHeadArgs
from anml.models.blocks import sequential


class MetricHead(nn.Module):
    """Logits t * cos(x, w_c), -t * |x - w_c|^2 or t * x . w_c of features x [n, d], rows w_c [classes, d]; no bias.

    t, `temperature`, is a number, or a parameter of shape [] (Chen et al. 2021, arXiv 2003.04390, have it for the
    cosine). Not an nn.Linear, though its weight has the same shape: what holds of logits that are linear in weights
    (least squares, SGD in dual form) does not hold of these, and is not made use of where it does (`dot`).
    """

    def __init__(self, features: int, args: MetricHeadArgs) -> None:
        super().__init__()
        self.in_features, self.out_features, self.metric = features, args.num_classes, args.metric
        self.weight = nn.Parameter(torch.empty(args.num_classes, features))
        is_cosine = args.metric == "cosine"
        self.start_temperature = args.temperature or (10.0 if is_cosine else 1.0)
        self.temperature: nn.Parameter | float = self.start_temperature
        learns = is_cosine and args.temperature is None if args.learn_temperature is None else args.learn_temperature
        if learns:
            self.temperature = nn.Parameter(torch.tensor(self.start_temperature))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.metric == "cosine":
            return self.temperature * (normalize(features) @ normalize(self.weight).T)
        if self.metric == "dot":
            return self.temperature * (features @ self.weight.T)
        # |x - w|^2 written out: no [n, classes, d] tensor of differences.
        squares = features.square().sum(dim=1, keepdim=True) + self.weight.square().sum(dim=1)
        return self.temperature * (2 * features @ self.weight.T - squares)


# What the last layer of a model may be. Both have `weight` [classes, d], `in_features` and `out_features`.
OutputLayer: TypeAlias = nn.Linear | MetricHead


def linear_head(args: LinearHeadArgs, features: int) -> nn.Sequential:
    return sequential({"linear": nn.Linear(features, args.num_classes)})


def mlp_head(args: MlpHeadArgs, features: int) -> nn.Sequential:
    mlp = nn.Sequential()
    for width in args.hidden_layers:
        mlp.extend([nn.Linear(features, width), nn.ReLU()])
        features = width
    mlp.append(nn.Linear(features, args.num_classes))
    return sequential({"mlp": mlp})


def metric_head(args: MetricHeadArgs, features: int) -> nn.Sequential:
    return sequential({"metric": MetricHead(features, args)})
