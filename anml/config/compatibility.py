"""Accepts the spellings of higherANML's configs: older key names, data set names, keys that mean nothing here."""

from typing import Any

from anml.config.dataset_facts import DATASET_ALIASES
from anml.config.evaluation import EvalConfig
from anml.config.yaml_source import KeyPath, Source

_OLD_KEYS = {"val_sample_size": "val_size", "method": "eval_method"}
_OLD_METHODS = {"seq": "sequential"}
_IGNORED = {
    "full_test": "evaluation is planned by eval_steps and eval",
    "download": "missing data are downloaded where the data set allows it",
    "record_learning_curve": "eval_freq says when to score",
    "output": "results go to the experiment folder",
}


def adopt(source: Source) -> list[str]:
    """Rewrite a training or evaluation config of higherANML into ours, in place. Returns notices for the user."""
    if not isinstance(source.data, dict):
        return []
    notices = _adopt_mapping(source, source.data, ())
    _flatten_eval(source)
    flavors = source.data.get("eval")
    if isinstance(flavors, dict):
        for name, flavor in flavors.items():
            if isinstance(flavor, dict):
                notices += _adopt_mapping(source, flavor, ("eval", name))
    return list(dict.fromkeys(notices))


def _adopt_mapping(source: Source, mapping: dict[str, Any], at: KeyPath) -> list[str]:
    notices = []
    for key, reason in _IGNORED.items():
        if key in mapping:
            del mapping[key]
            notices.append(f"{source.locate((*at, key))}: {key} has no meaning here and is ignored: {reason}")
    for old, new in _OLD_KEYS.items():
        if old in mapping and new not in mapping:
            mapping[new] = mapping.pop(old)
            source.locations[(*at, new)] = source.locate((*at, old))
    _replace(mapping, "dataset", DATASET_ALIASES)
    _replace(mapping, "eval_method", _OLD_METHODS)
    return notices


def _replace(mapping: dict[str, Any], key: str, names: dict[str, str]) -> None:
    if isinstance(mapping.get(key), str):
        mapping[key] = names.get(mapping[key], mapping[key])


def _flatten_eval(source: Source) -> None:
    """Turn `eval` (one evaluation, or a list of {flavor: evaluation}) into one mapping of flavors."""
    value = source.data.get("eval")
    if isinstance(value, dict) and any(key in EvalConfig.model_fields or key in _OLD_KEYS for key in value):
        source.data["eval"] = {"eval": value}
        _move(source, ("eval",), ("eval", "eval"))
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        names = [name for item in value for name in item]
        if len(set(names)) < len(names):
            return  # The list itself is then reported: a flavor twice would overwrite its own results.
        source.data["eval"] = {name: flavor for item in value for name, flavor in item.items()}
        for index, item in enumerate(value):
            for name in item:
                _move(source, ("eval", index, name), ("eval", name))


def _move(source: Source, old: KeyPath, new: KeyPath) -> None:
    for key_path in [k for k in source.locations if k[: len(old)] == old]:
        source.locations[(*new, *key_path[len(old) :])] = source.locations[key_path]
