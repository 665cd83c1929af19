"""From a YAML file and command-line overrides to a checked config: the one way in."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from anml.config.binding import bind
from anml.config.checks import check_eval, check_train
from anml.config.compatibility import adopt
from anml.config.dataset_facts import DATASETS
from anml.config.evaluation import EvalConfig
from anml.config.model_args import ENCODER_ARGS, HEAD_ARGS, MODEL_ARGS
from anml.config.record import Record
from anml.config.training import TrainConfig
from anml.config.yaml_source import KeyPath, Location, Source, parse_scalar, read_yaml
from anml.errors import ConfigError


class LoadedTrain(NamedTuple):
    """A checked training config and what the user should be told about it."""

    config: TrainConfig
    notices: list[str]


class LoadedEval(NamedTuple):
    """A checked evaluation config and what the user should be told about it."""

    config: EvalConfig
    notices: list[str]


def load_train_config(
    path: Path, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> LoadedTrain:
    """Read a training config. `overrides` are `key.sub=value`, `options` come from command-line flags.

    Raises ConfigError with every problem found.
    """
    source = read_yaml(path)
    notices = _prepare(source, overrides, options)
    config, problems = bind(TrainConfig, source)
    problems += _bind_model_args(source)
    if config and not problems:
        config = _fill_in(config)
        problems += check_train(config, source)
    else:
        problems += _check_flavors_alone(source)
    if config is None or problems:
        raise ConfigError(problems)
    return LoadedTrain(config, notices)


def load_eval_config(path: Path, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> LoadedEval:
    """Read an evaluation config. Raises ConfigError with every problem found."""
    source = read_yaml(path)
    notices = _prepare(source, overrides, options)
    config, problems = bind(EvalConfig, source)
    if config:
        problems += check_eval(config, source, ())
    if config is None or problems:
        raise ConfigError(problems)
    return LoadedEval(config, notices)


def dump_config(config: Record) -> str:
    """Return a config as YAML that loads to the same config."""
    return yaml.safe_dump(_without_unset(config), sort_keys=False, allow_unicode=True)


def _without_unset(record: Record) -> dict[str, Any]:
    """Leave out unset keys of records, but never a null inside free-form mappings: `norm_type: null` is a choice."""
    data = record.model_dump(mode="json")
    kept = {key: value for key, value in data.items() if value is not None}
    if isinstance(record, TrainConfig):
        kept["eval"] = {name: _without_unset(flavor) for name, flavor in record.eval.items()}
    return kept


def _prepare(source: Source, overrides: Sequence[str], options: Mapping[str, Any] | None) -> list[str]:
    if not isinstance(source.data, dict):
        message = (
            f"{source.locate(())}: a config is a mapping of `key: value` lines, found {type(source.data).__name__}"
        )
        raise ConfigError(message)
    notices = adopt(source)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            message = f"--set {override}: write it as key=value, for instance --set inner_lr=0.05"
            raise ConfigError(message)
        _set(source, tuple(key.strip().split(".")), parse_scalar(text), f"--set {key.strip()}")
    for key, value in (options or {}).items():
        if value is not None:
            _set(source, (key,), value, f"--{key.replace('_', '-')}")
    return notices + adopt(source)


def _set(source: Source, key_path: KeyPath, value: Any, origin: str) -> None:
    target = source.data
    for key in key_path[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            message = f"{origin}: {key} is not a mapping, so nothing inside it can be set"
            raise ConfigError(message)
    target[str(key_path[-1])] = value
    source.locations[key_path] = Location(origin)


def _bind_model_args(source: Source) -> list[str]:
    """Check `model_args` against the named model's own record, with the lines of the file."""
    model = source.data.get("model")
    if model not in MODEL_ARGS:
        return []
    source.data.setdefault("model_args", {})
    _, problems = bind(MODEL_ARGS[model], source, ("model_args",))
    args = source.data["model_args"]
    if model == "classifier" and isinstance(args, dict):
        for key, table in (("encoder", ENCODER_ARGS), ("classifier", HEAD_ARGS)):
            record = table.get(args.get(key, "linear-classifier"))
            if record:
                args.setdefault(f"{key}_args", {})
                problems += bind(record, source, ("model_args", f"{key}_args"))[1]
    return problems


def _check_flavors_alone(source: Source) -> list[str]:
    """Check the flavors of a config that is wrong elsewhere, so that all problems show at once."""
    problems = []
    flavors = source.data.get("eval")
    for name in flavors if isinstance(flavors, dict) else ():
        flavor, _ = bind(EvalConfig, source, ("eval", name))
        if flavor:
            dataset = flavor.dataset or str(source.data.get("dataset"))
            if dataset in DATASETS:
                problems += check_eval(flavor.model_copy(update={"dataset": dataset}), source, ("eval", name))
    return problems


def _fill_in(config: TrainConfig) -> TrainConfig:
    """Resolve what depends on the machine or on other keys, so that config.yml reproduces the run elsewhere."""
    data_path = config.data_path or os.environ.get("ANML_DATA")
    data_path = str(Path(data_path).expanduser().resolve()) if data_path else None
    changes: dict[str, Any] = {"data_path": data_path, "im_size": config.image_shape[1]}
    changes["eval"] = {
        name: flavor.model_copy(
            update={
                "dataset": flavor.dataset or config.dataset,
                "im_size": flavor.im_size or config.image_shape[1],
                "data_path": flavor.data_path or data_path,
            }
        )
        for name, flavor in config.eval.items()
    }
    return config.model_copy(update=changes)
