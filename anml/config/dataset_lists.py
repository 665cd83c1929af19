"""A flavor with a list of data sets stands for one flavor per data set: each becomes a job of its own."""

from typing import Any

from anml.config.binding import problem
from anml.config.dataset_facts import canonical_dataset
from anml.config.source import Source


def one_flavor_per_dataset(source: Source) -> list[str]:
    """Replace a flavor `olft` on `[omniglot, glyphs]` by `olft-omniglot` and `olft-glyphs`, in place.

    Returns what is wrong: the flavors of an experiment have different names.
    """
    flavors, problems = {}, []
    for name, settings in source.data["eval"].items():
        for new_name, new_settings in _variants(name, settings):
            if new_name != name and (new_name in flavors or new_name in source.data["eval"]):
                message = f"makes a flavor {new_name}, which there is already; rename one, or name a data set once"
                problems.append(problem(source, ("eval", name, "dataset"), message))
            _copy_locations(source, name, new_name)
            flavors[new_name] = new_settings
    source.data["eval"] = flavors
    return problems


def one_per_dataset(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of an evaluation by hand, once for each data set of a list."""
    return [variant for _, variant in _variants("", settings)]


def _variants(name: str, settings: Any) -> list[tuple[str, Any]]:
    datasets = settings.get("dataset") if isinstance(settings, dict) else None
    if not isinstance(datasets, list) or not datasets or not all(isinstance(d, str) for d in datasets):
        return [(name, settings)]
    ours = [canonical_dataset(dataset, settings.get("imgs_per_class")) for dataset in datasets]
    return [(f"{name}-{d}" if len(ours) > 1 else name, settings | {"dataset": d}) for d in ours]


def _copy_locations(source: Source, name: str, new_name: str) -> None:
    inside = [key for key in source.locations if key[:2] == ("eval", name)]
    for key in inside:
        source.locations[("eval", new_name, *key[2:])] = source.locations[key]
