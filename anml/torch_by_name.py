"""Optimizers and schedules of torch by the names that a config gives them."""

from typing import Any

from anml.config.binding import nearest
from anml.errors import ConfigError

# What they raise when they are made, or first stepped, with arguments that make no sense.
BAD_ARGUMENTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def make_by_name(module: Any, base: type, key: str, name: str, first: Any, arguments: dict[str, Any]) -> Any:
    """Make an optimizer or a schedule by its name in torch. Raises ConfigError naming what is wrong."""
    kinds = {
        own: kind
        for own, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base and not own.startswith("_")
    }
    if name not in kinds:
        message = f"{key}: torch has no {name!r}{nearest(name, kinds) or '; it has: ' + ', '.join(sorted(kinds))}"
        raise ConfigError(message)
    try:
        return kinds[name](first, **arguments)
    except BAD_ARGUMENTS as error:
        message = f"{key}_args: {name} does not take {arguments}: {error}"
        raise ConfigError(message) from None
