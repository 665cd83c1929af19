"""Optimizers and schedules of the learning rate: torch's, by the names that a config gives them."""

from collections.abc import Callable, Sequence
from inspect import unwrap
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from anml.config.binding import nearest
from anml.config.evaluation import Stepper
from anml.errors import ConfigError

# What they raise when they are made, or first stepped, with arguments that make no sense.
BAD_ARGUMENTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

# What no step here gives them.
_UNUSABLE = {"LBFGS": "the loss again and again within a step", "SparseAdam": "sparse gradients"}


class Adam(torch.optim.Adam):
    """torch's Adam without the import of torch's compiler, which was half of the CPU time of a short job.

    torch imports it to mark these methods for it. Unwrapped they are the same methods, unmarked.
    """

    add_param_group = unwrap(torch.optim.Adam.add_param_group)
    zero_grad = unwrap(torch.optim.Adam.zero_grad)
    state_dict = unwrap(torch.optim.Adam.state_dict)
    load_state_dict = unwrap(torch.optim.Adam.load_state_dict)
    _unmarked_step = unwrap(torch.optim.Adam.step)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        return self._unmarked_step(closure)


def make_by_name(module: Any, base: type, key: str, name: str, first: Any, arguments: dict[str, Any]) -> Any:
    """Make an optimizer or a schedule by its name in torch. Raises ConfigError naming what is wrong."""
    kinds = {
        own: kind
        for own, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base and not own.startswith("_")
    }
    if base is torch.optim.Optimizer:
        kinds["Adam"] = Adam
    if name not in kinds:
        message = f"{key}: torch has no {name!r}{nearest(name, kinds) or '; it has: ' + ', '.join(sorted(kinds))}"
        raise ConfigError(message)
    if name in _UNUSABLE:
        message = f"{key}: {name} needs {_UNUSABLE[name]}; take another"
        raise ConfigError(message)
    try:
        return kinds[name](first, **arguments)
    except BAD_ARGUMENTS as error:
        message = f"{key}_args: {name} does not take {arguments}: {error}"
        raise ConfigError(message) from None


def make_stepper(stepper: Stepper, lr: float, parameters: Sequence[torch.Tensor]) -> Callable[[], None]:
    """Return what takes a step of an optimizer, and of its schedule; gradients are gone then. Raises ConfigError."""
    arguments = {"lr": lr, **stepper.args} | ({"fused": True} if stepper.optimizer == "Adam" else {})
    base = torch.optim.Optimizer
    optimizer = make_by_name(torch.optim, base, "optimizer", stepper.optimizer, list(parameters), arguments)
    parts = [optimizer]
    if stepper.schedule is not None:
        parts.append(schedule_by_name("lr_scheduler", stepper.schedule, {**stepper.schedule_args}, optimizer, "step"))

    def step() -> None:
        for part in parts:
            part.step()
        optimizer.zero_grad()

    return step


def count_moments(stepper: Stepper) -> int:
    """Return how many numbers an optimizer keeps for each weight: 2 of Adam, 1 of SGD with momentum."""
    weights = torch.nn.Parameter(torch.zeros(64))
    weights.grad = torch.ones(64)
    optimizer = make_by_name(
        torch.optim, torch.optim.Optimizer, "optimizer", stepper.optimizer, [weights], {**stepper.args}
    )
    optimizer.step()
    return sum(value.numel() for value in optimizer.state[weights].values() if isinstance(value, torch.Tensor)) // 64


def schedule_by_name(
    key: str, name: str, arguments: dict[str, Any], optimizer: torch.optim.Optimizer, unit: str
) -> LRScheduler:
    """Make a schedule that depends on the steps alone. Raises ConfigError. unit: what it counts."""
    schedule = make_by_name(torch.optim.lr_scheduler, LRScheduler, key, name, optimizer, arguments)
    if isinstance(schedule, ReduceLROnPlateau):
        message = f"{key}: ReduceLROnPlateau needs a validation loss; use one that depends on the {unit} alone"
        raise ConfigError(message)
    return schedule
