"""What the training engines and the evaluations ask of every model."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from anml.config.model_args import Initialisation
from anml.errors import ConfigError
from anml.models.heads import MetricHead, OutputLayer
from anml.rng import torch_generator


class MetaModel(nn.Module):
    """A network that is used in two halves, so that what does not change is computed once.

    `encode` turns images [n, C, H, W] into features [n, d]; `classify` turns features into logits [n, classes].
    A model with a gate (neuromodulation) also has `modulate`: the gate [n, d], which `encode` multiplies by (NONML:
    appends). `encode` uses a gate that it is given instead of computing one.
    `head_layer` names the output layer, `head_prefix` all that `classify` uses, `gate_prefix` all that `modulate` uses.
    """

    head_layer: str
    head_prefix: str
    gate_prefix: str | None = None
    # Of a model out of a checkpoint: its ModelCard, which says how it was trained.
    card: Any = None

    # Not an abstract base class: `higher`, the reference engine, cannot copy one.
    def encode(self, images: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        raise NotImplementedError

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def modulate(self, images: torch.Tensor) -> torch.Tensor | None:
        return None

    def forward(self, inputs: torch.Tensor, gate: torch.Tensor | None = None, part: str = "all") -> torch.Tensor | None:
        """Run the whole network, or one part ("encode", "classify", "modulate") of it.

        torch.func.functional_call reaches a module only through forward; `part` makes every half reachable.
        """
        if part == "encode":
            return self.encode(inputs, gate)
        if part == "classify":
            return self.classify(inputs)
        if part == "modulate":
            return self.modulate(inputs)
        return self.classify(self.encode(inputs, gate))

    @property
    def head(self) -> OutputLayer:
        """The output layer. What needs logits that are linear in its weights must ask whether it is an nn.Linear."""
        layer = self.get_submodule(self.head_layer)
        assert isinstance(layer, OutputLayer)
        return layer


def draw_kaiming(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw float32 weights, normal with variance 2 / fan_in (He et al. 2015, section 2.2)."""
    return torch.randn(shape, generator=generator) * (2.0 / math.prod(shape[1:])) ** 0.5


def initialise(model: MetaModel, seed: int, how: Initialisation = "uniform") -> None:
    """Draw every parameter from named generators, so that no global random state is used.

    `uniform`: convolutions kaiming normal, as in ANML; Linear layers, metric heads and biases uniform in
    +-1/sqrt(fan_in), as PyTorch does. `kaiming`: Linear layers kaiming normal too, biases zero, as in OML. `fan_out`:
    convolutions normal with variance 2 / fan_out and without bias, as in torchvision's ResNets, all else as in
    `uniform`. Norms are one and zero. Each parameter has its own stream: the same layer starts alike in every model of
    a seed.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear, MetricHead)):
            continue
        weight, bias = layer.weight, None if isinstance(layer, MetricHead) else layer.bias
        bound = (weight.numel() / weight.shape[0]) ** -0.5
        generator = torch_generator(seed, "initial", f"{name}.weight")
        with torch.no_grad():
            if isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Linear) and how == "kaiming"):
                scale = (weight.shape[1] / weight.shape[0]) ** 0.5 if how == "fan_out" else 1.0
                weight.copy_(draw_kaiming(tuple(weight.shape), generator) * scale)
            else:
                weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)
            if bias is not None:
                generator = torch_generator(seed, "initial", f"{name}.bias")
                starts_at_zero = how == "kaiming" or (how == "fan_out" and isinstance(layer, nn.Conv2d))
                bias.copy_((torch.rand(bias.shape, generator=generator) * 2 - 1) * (0 if starts_at_zero else bound))


def select_names(model: MetaModel, selectors: Iterable[str]) -> list[str]:
    """Return the selected parameter names, in the model's order. Raises ConfigError when a selector matches none.

    A selector is `all`, `head` (the output layer) or a prefix such as `rln` or `classifier.mlp.2`.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for selector in selectors:
        prefix = model.head_layer if selector == "head" else selector
        matching = [name for name in names if selector == "all" or belongs_to(name, prefix)]
        if not matching:
            paths = [".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)]
            listed = ", ".join(dict.fromkeys(paths))
            message = f"no parameter is called {selector!r}; this model has: all, head, {listed}"
            raise ConfigError(message)
        chosen.update(matching)
    return [name for name in names if name in chosen]


def check_output_layer(model: MetaModel, selector: str) -> None:
    """Raise ConfigError unless the selector names the model's output layer."""
    if selector not in ("head", model.head_layer):
        message = f"{selector!r} is not this model's output layer; it is {model.head_layer!r} (or write head)"
        raise ConfigError(message)


def belongs_to(name: str, prefix: str | None) -> bool:
    """Say whether a parameter lies under a prefix."""
    return prefix is not None and (name == prefix or name.startswith(f"{prefix}."))


def find_not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the name of the first tensor that holds a NaN or an infinity, or an empty string. Waits for the device."""
    # aminmax passes a NaN on, and is ten times as fast on a CPU as `isfinite` of every number.
    are_finite = torch.stack([torch.stack(value.aminmax()).isfinite().all() for value in tensors.values()])
    return next((name for name, is_finite in zip(tensors, are_finite.tolist(), strict=True) if not is_finite), "")
