"""Accepts the spellings of higherANML's configs: older key names, data set names, keys that mean nothing here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from anml.config.binding import nearest, problem, show
from anml.config.evaluation import EvalConfig
from anml.config.facts import canonical_dataset
from anml.config.model_args import MODELS
from anml.config.yaml import KeyPath, Source

# Older name of a key to ours.
TRAIN_KEYS = {"val_sample_size": "val_size", "method": "train_method"}
EVAL_KEYS = {"method": "eval_method"}
# Names that keys of this project had before.
EARLIER_KEYS = {"seeds_together": "train_together"}
_OLD_METHODS = {"seq": "sequential"}
# Keys that mean nothing here, and what takes their place.
IGNORED_KEYS = {
    "full_test": "evaluation is planned by eval_steps and eval",
    "download": "missing data are downloaded where the data set allows it",
    "record_learning_curve": "eval_freq says when to score",
    "output": "results go to the experiment folder",
    "save_initial_model": "eval_untrained: true evaluates the model before any training",
    "id": "W&B runs are named after their jobs",
}


class Findings(NamedTuple):
    """What the user should know about a config, and what is wrong with it."""

    notices: list[str]
    problems: list[str]


def adopt_train(source: Source) -> Findings:
    """Rewrite a training config of higherANML into ours, in place. Doing it twice changes nothing more."""
    data = source.data
    written = data.get("dataset")
    found = _adopt(source, data, (), TRAIN_KEYS | EARLIER_KEYS, Findings([], []))
    model = data.get("model")
    if isinstance(model, str) and model.lower() in MODELS:
        data["model"] = model.lower()  # `ANML`, `SANML`, `OML`, `Classifier` are higherANML's classes.
    if data.get("dataset") != written:
        found.notices.extend(_pooling_notice(source))
    _name_flavors(source, found)
    for name, flavor in data["eval"].items():
        if isinstance(flavor, dict):
            _adopt(source, flavor, ("eval", name), EVAL_KEYS, found)
            if flavor.get("model"):
                message = "is ignored: here the checkpoints of this training are evaluated; for others there is "
                found.notices.append(problem(source, ("eval", name, "model"), message + "eval_anml.py"))
    return found


def adopt_eval(source: Source) -> Findings:
    """Rewrite an evaluation config of higherANML into ours, in place."""
    return _adopt(source, source.data, (), EVAL_KEYS, Findings([], []))


def _adopt(
    source: Source, mapping: dict[str, Any], at: KeyPath, old_keys: Mapping[str, str], found: Findings
) -> Findings:
    for key in [key for key in IGNORED_KEYS if key in mapping]:
        del mapping[key]
        found.notices.append(problem(source, (*at, key), f"has no meaning here and is ignored: {IGNORED_KEYS[key]}"))
    for old in [old for old in old_keys if old in mapping]:
        new, value = old_keys[old], mapping.pop(old)
        if new in mapping:
            message = f"is an older name of {new}, which is given too; keep one of them"
            found.problems.append(problem(source, (*at, old), message))
        else:
            mapping[new] = value
            source.locations[(*at, new)] = source.locate((*at, old))
    if isinstance(mapping.get("dataset"), str):
        mapping["dataset"] = canonical_dataset(mapping["dataset"], mapping.get("imgs_per_class"))
    if isinstance(mapping.get("eval_method"), str):
        mapping["eval_method"] = _OLD_METHODS.get(mapping["eval_method"], mapping["eval_method"])
    return found


def _name_flavors(source: Source, found: Findings) -> None:
    """Turn `eval` (one evaluation, or a list of {flavor: evaluation}) into one mapping of flavors."""
    value = source.data.get("eval")
    if isinstance(value, list):
        value = _join(source, value, found)
    elif value is not None and not isinstance(value, dict):
        message = f"must be a list of flavors (- name: {{...}}), found {show(value)}"
        found.problems.append(problem(source, ("eval",), message))
        value = None
    value = value or {}
    if _is_one_evaluation(value):
        value = {"eval": value}
        source.copy_locations(("eval",), ("eval", "eval"))
    source.data["eval"] = value


def _is_one_evaluation(value: Mapping[str, Any]) -> bool:
    """Tell settings (maybe misspelt) from flavors."""
    keys = (*EvalConfig.model_fields, *EVAL_KEYS)
    has_flavors = any(setting is None or isinstance(setting, dict) for setting in value.values())
    return not has_flavors and any(key in keys or nearest(key, keys) for key in value)


def _join(source: Source, items: list[Any], found: Findings) -> dict[str, Any]:
    """Join a list of mappings into one. A flavor given twice is a problem: it would overwrite its own results."""
    joined: dict[str, Any] = {}
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            message = f"must be a flavor (- name: {{...}}), found {show(item)}"
            found.problems.append(problem(source, ("eval", index), message))
            continue
        for name in item:
            if name in joined:
                first = source.locate(("eval", name))
                message = f"a flavor of this name is given at {first}"
                found.problems.append(problem(source, ("eval", index, name), message))
            else:
                joined[name] = item[name]
                source.copy_locations(("eval", index, name), ("eval", name))
    return joined


def _pooling_notice(source: Source) -> list[str]:
    """Say that an ANML written for higherANML's later code is another one here, unless it says which it is."""
    args = source.data.get("model_args")
    at: KeyPath = ("model_args",)
    if isinstance(args, dict) and args.get("encoder") == "anml-encoder":
        args, at = args.get("encoder_args"), (*at, "encoder_args")
    elif source.data.get("model") != "anml":
        return []
    if isinstance(args, dict) and "pool_nm_output" in args:
        return []
    message = "the last block of the NM is unpooled, as published; higherANML's later code pools it: "
    return [problem(source, at, message + "pool_nm_output: true")]
