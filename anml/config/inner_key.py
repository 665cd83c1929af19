"""Keys that reach inside what a base file holds: `eval.olft.runs: 3` changes one setting of one flavor."""

from typing import Any


def holder(data: dict[str, Any], key: str) -> tuple[dict[str, Any], tuple[str | int, ...]]:
    """Return the mapping whose last key a dotted key names, and the key path of that last key.

    In a list of mappings (`- olft: {...}`) the item with the key is meant; a last key that none of them has becomes a
    new item. Raises ValueError, in words, where something on the way is not there.
    """
    *parents, last = key.split(".")
    target: Any = data
    at: tuple[str | int, ...] = ()
    for depth, part in enumerate(parents):
        place = ".".join(parents[:depth]) or "the file"
        known = {name: (mapping, steps) for mapping, steps in _mappings(target) for name in mapping}
        if part not in known:
            there_are = f"there are: {', '.join(known)}" if known else "nothing is inside it"
            message = f"there is no {part!r} in {place}; {there_are}"
            raise ValueError(message)
        mapping, steps = known[part]
        target, at = mapping[part], (*at, *steps, part)
    if not isinstance(target, (dict, list)):
        message = f"{'.'.join(parents)} holds no keys, so nothing inside it can be set"
        raise ValueError(message)
    owner, steps = _owner(target, last)
    return owner, (*at, *steps, last)


def _owner(target: dict[str, Any] | list[Any], last: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return the mapping that has a key or is to have it, and its place in the target."""
    for mapping, steps in _mappings(target):
        if last in mapping or mapping is target:
            return mapping, steps
    assert isinstance(target, list)
    target.append({})
    return target[-1], (len(target) - 1,)


def _mappings(target: Any) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    """Return the mappings that keys are looked up in: a mapping itself, or those in a list with their positions."""
    if isinstance(target, dict):
        return [(target, ())]
    items = enumerate(target) if isinstance(target, list) else ()
    return [(item, (index,)) for index, item in items if isinstance(item, dict)]
