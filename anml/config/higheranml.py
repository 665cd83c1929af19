"""Accepts the spellings of higherANML's configs: older key names, data set names, keys that mean nothing here."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from anml.config.binding import nearest, problem, show
from anml.config.evaluation import EvalConfig
from anml.config.facts import DATASETS, IMAGES_FOLDER, canonical_dataset
from anml.config.model_args import ENCODERS, MODELS
from anml.config.training import amount_of
from anml.config.yaml import KeyPath, Source, value_at

# Older name of a key to ours.
TRAIN_KEYS = {"val_sample_size": "val_size", "method": "train_method", "greyscale": "channels"}
EVAL_KEYS = {"method": "eval_method", "greyscale": "channels"}
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
# The same, of a config for an evaluation by hand.
IGNORED_EVAL_KEYS = {
    **IGNORED_KEYS,
    **dict.fromkeys(("project", "entity", "group"), "an evaluation by hand is not sent to W&B"),
    "device": "--device chooses it",
}
# Keys whose values other than false are refused, and what to do instead.
REFUSED_KEYS = {
    "use_random_split": "put the list of evaluation classes that you want beside the data, as docs/data.md says",
}
# Names of model arguments there, and here.
MODEL_ARGS = {
    "num_conv_blocks": "num_blocks",
    "planes": "num_filters",
    "fc_layer_size": "hidden",
    "temp": "temperature",
    "n_classes": "num_classes",
}
# What higherANML has, by our names; its own names are others.
_DATASETS = ("omniglot", "mini-imagenet", "omniimage20", "omniimage100")
# How many examples of validation higherANML draws where a config says only how many there are.
_VAL_SAMPLE = 200


class Findings(NamedTuple):
    """What the user should know about a config, and what is wrong with it."""

    notices: list[str]
    problems: list[str]


def adopt_train(source: Source) -> Findings:
    """Rewrite a training config of higherANML into ours, in place. Doing it twice changes nothing more."""
    data = source.data
    written = data.get("dataset")
    is_original = isinstance(written, str) and canonical_dataset(written, data.get("imgs_per_class")) in (
        set(_DATASETS) - {written}
    )
    findings = Findings([], [])
    if is_original:
        _adopt_validation(source, findings)
    _adopt(source, data, (), TRAIN_KEYS | EARLIER_KEYS, findings)
    model = data.get("model")
    if isinstance(model, str) and model.lower() in MODELS:
        data["model"] = model.lower()  # `ANML`, `SANML`, `OML`, `Classifier` are higherANML's classes.
    for at in ((), ("encoder_args",), ("classifier_args",)):
        _rename_args(source, ("model_args", *at))
    _drop_downloads(source, findings)
    if data.get("max_grad_norm") == 0:
        data["max_grad_norm"] = None
    if is_original:
        _limit_train_size(source, findings)
        findings.notices.extend(_pooling_notice(source))
        for key, value, because, why in _settings_of_original(data):
            if data.get(key) is None:
                data[key] = value
                source.locations[key,] = source.locate((because,))
                message = f"{why} in higherANML, and so here by {key}: {show(value)}"
                findings.notices.append(problem(source, (because,), message))
    name_flavors(source, findings)
    for name, flavor in data["eval"].items():
        if isinstance(flavor, dict):
            _adopt(source, flavor, ("eval", name), EVAL_KEYS, findings)
            if flavor.get("model"):
                message = "is ignored: here the checkpoints of this training are evaluated; for others there is "
                findings.notices.append(problem(source, ("eval", name, "model"), message + "eval_anml.py"))
    return findings


def adopt_eval(source: Source) -> Findings:
    """Rewrite an evaluation config of higherANML into ours, in place."""
    return _adopt(source, source.data, (), EVAL_KEYS, Findings([], []), IGNORED_EVAL_KEYS)


def _adopt(
    source: Source, mapping: dict[str, Any], at: KeyPath, old_keys: Mapping[str, str], findings: Findings,
    ignored: Mapping[str, str] = IGNORED_KEYS,
) -> Findings:  # fmt: skip
    for key in [key for key in ignored if key in mapping]:
        del mapping[key]
        findings.notices.append(problem(source, (*at, key), f"has no meaning here and is ignored: {ignored[key]}"))
    for key in [key for key in REFUSED_KEYS if key in mapping]:
        if mapping.pop(key):
            findings.problems.append(problem(source, (*at, key), f"is not available; {REFUSED_KEYS[key]}"))
    if isinstance(mapping.get("greyscale"), bool):
        mapping["greyscale"] = 1 if mapping["greyscale"] else 3
    for old in [old for old in old_keys if old in mapping]:
        new, value = old_keys[old], mapping.pop(old)
        if new in mapping:
            message = f"is an older name of {new}, which is given too; keep one of them"
            findings.problems.append(problem(source, (*at, old), message))
        else:
            mapping[new] = value
            source.locations[(*at, new)] = source.locate((*at, old))
    if mapping.get("dataset") == "imagenet84":
        message = "imagenet84 is not available; images-folder has it, with class_split, data_path and imgs_per_class"
        findings.problems.append(problem(source, (*at, "dataset"), message))
        mapping["dataset"] = IMAGES_FOLDER
    if isinstance(mapping.get("dataset"), str):
        mapping["dataset"] = canonical_dataset(mapping["dataset"], mapping.get("imgs_per_class"))
    if isinstance(mapping.get("eval_method"), str):
        mapping["eval_method"] = _OLD_METHODS.get(mapping["eval_method"], mapping["eval_method"])
    return findings


def _adopt_validation(source: Source, findings: Findings) -> None:
    """Read `val_size` as higherANML's later code does, where it is the number or fraction of examples of each class."""
    data = source.data
    size, drawn = data.get("val_size"), data.get("val_sample_size")
    if size is None or "val_examples" in data:
        return
    if drawn is None and data.get("train_method") != "iid" and not isinstance(size, float):
        return
    data.pop("val_sample_size", None)
    data["val_examples"], data["val_size"] = size or None, (_VAL_SAMPLE if drawn is None else drawn) if size else 0
    source.locations["val_examples",] = source.locate(("val_size",))
    message = f"counts examples of each class in this config of higherANML: here val_examples: {show(size)}, val_size: "
    findings.notices.append(problem(source, ("val_size",), f"{message}{show(data['val_size'])}"))


def _limit_train_size(source: Source, findings: Findings) -> None:
    """Train on all examples where `train_size` is more than a class has and no other key asks for some of them."""
    data, has = source.data, _images_per_class(source.data)
    size = data.get("train_size")
    if isinstance(size, int) and isinstance(has, int) and size > has > 0 and not data.get("val_examples"):
        data["train_size"] = has
        message = f"is more than a class has: all its {has} examples are for training, as in higherANML"
        findings.notices.append(problem(source, ("train_size",), message))


def _images_per_class(data: Mapping[str, Any]) -> Any:
    facts = DATASETS.get(data["dataset"])
    return data.get("imgs_per_class") or (facts.examples_per_class if facts else 0)


def _settings_of_original(data: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, str]]:
    """Yield keys that make higherANML's configs train as there: key, value, the key that asks for it, and why."""
    is_iid, period = data.get("train_method") == "iid", data.get("lobo_rate")
    if is_iid and isinstance(period, int) and period > 1 and data.get("lobo_size"):
        yield "lobo_first", period - 1, "lobo_rate", f"rows are first re-drawn before epoch {period}"
    if is_iid:
        return
    if data.get("sample_method") == "uniform" and data.get("lobotomize", True):
        yield "lobo_classes", "first", "sample_method", "only the row of one class is re-drawn"
    counts, whole = [data.get(key, 1) for key in ("batch_size", "num_batches")], _images_per_class(data)
    size, held_out = (data.get(key) or 0 for key in ("train_size", "val_examples"))
    are_numbers = all(isinstance(number, int | float) for number in (*counts, whole, size, held_out))
    if not are_numbers or data.get("sample_method", "single") != "single":
        return
    has = amount_of(size, whole, math.floor) if size else whole - amount_of(held_out, whole, math.ceil)
    if math.prod(counts) > has > 0:
        yield "replacement", True, "num_batches", f"examples of a class are drawn with replacement, {has} being too few"


def _rename_args(source: Source, at: KeyPath) -> None:
    """Give arguments of a model our names, in place."""
    args = value_at(source.data, at)
    for old in [old for old in MODEL_ARGS if isinstance(args, dict) and old in args and MODEL_ARGS[old] not in args]:
        args[MODEL_ARGS[old]] = args.pop(old)
        source.copy_locations((*at, old), (*at, MODEL_ARGS[old]))


def _drop_downloads(source: Source, findings: Findings) -> None:
    """Drop the arguments of an encoder that are about downloaded weights; a user's own encoder keeps them."""
    args = value_at(source.data, ("model_args", "encoder_args"))
    if not isinstance(args, dict) or value_at(source.data, ("model_args", "encoder")) not in tuple(ENCODERS):
        return
    for key in [key for key in ("pretrained", "progress") if key in args]:
        at = ("model_args", "encoder_args", key)
        if args.pop(key) and key == "pretrained":
            message = "is not available: no weights are downloaded; set it to false, or remove it"
            findings.problems.append(problem(source, at, message))
        else:
            message = "has no meaning here and is ignored: no weights are downloaded"
            findings.notices.append(problem(source, at, message))


def name_flavors(source: Source, findings: Findings) -> None:
    """Turn `eval` (one evaluation, or a list of {flavor: evaluation}) into one mapping of flavors."""
    value = source.data.get("eval")
    if isinstance(value, list):
        value = _join(source, value, findings)
    elif value is not None and not isinstance(value, dict):
        message = f"must be a list of flavors (- name: {{...}}), found {show(value)}"
        findings.problems.append(problem(source, ("eval",), message))
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


def _join(source: Source, items: list[Any], findings: Findings) -> dict[str, Any]:
    """Join a list of mappings into one. A flavor given twice is a problem: it would overwrite its own results."""
    joined: dict[str, Any] = {}
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            message = f"must be a flavor (- name: {{...}}), found {show(item)}"
            findings.problems.append(problem(source, ("eval", index), message))
            continue
        for name in item:
            if name in joined:
                first = source.locate(("eval", name))
                message = f"a flavor of this name is given at {first}"
                findings.problems.append(problem(source, ("eval", index, name), message))
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
