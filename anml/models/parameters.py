"""Selects parameters by the names that configs use: `all`, `head`, or a prefix such as `rln` or `classifier.mlp.2`."""

from collections.abc import Iterable, Mapping

import torch

from anml.errors import ConfigError
from anml.models.meta_model import MetaModel


def select_names(model: MetaModel, selectors: Iterable[str]) -> list[str]:
    """Return the selected parameter names, in the model's order. Raises ConfigError when a selector matches none."""
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for selector in selectors:
        prefix = model.head_layer if selector == "head" else selector
        matching = [n for n in names if selector == "all" or n == prefix or n.startswith(f"{prefix}.")]
        if not matching:
            message = f"no parameter is called {selector!r}; this model has: all, head, {', '.join(_prefixes(names))}"
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
    # aminmax passes a NaN on, and is 15 times as fast on a CPU as `isfinite` of every number.
    are_finite = torch.stack([torch.stack(value.aminmax()).isfinite().all() for value in tensors.values()])
    return next((name for name, is_finite in zip(tensors, are_finite.tolist(), strict=True) if not is_finite), "")


def _prefixes(names: list[str]) -> list[str]:
    """Return what a user may write: every module path that holds parameters."""
    paths = [".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)]
    return list(dict.fromkeys(paths))
