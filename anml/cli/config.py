"""`config show` and `config diff`: configs with everything in them resolved, and where each value is from."""

import argparse
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from anml.cli.arguments import add_experiments_dir_argument, config_file, find_experiments, print_notices
from anml.config.binding import Record, dotted
from anml.config.evaluation import EvalConfig
from anml.config.load import load_eval_configs, load_experiment_config, load_train_config, set_keys
from anml.config.training import TrainConfig
from anml.config.yaml import KeyPath, Source, in_one_line, read_yaml, value_at
from anml.errors import ConfigError
from anml.jobs.launch import experiments_dir

_ABSENT = object()
# Keys of a training alone: what has one of them is no evaluation config.
_OF_TRAINING = TrainConfig.model_fields.keys() - EvalConfig.model_fields.keys()


def config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["show", "diff"])
    what = "a config, of a training or an evaluation, or an experiment; diff takes two"
    parser.add_argument("names", metavar="FILE or PROJECT/GROUP", nargs="+", help=what)
    override = "override a key of them (repeatable)"
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help=override)
    add_experiments_dir_argument(parser)


def config(options: argparse.Namespace) -> None:
    wanted = {"show": 1, "diff": 2}[options.action]
    if len(options.names) != wanted:
        message = f"config {options.action} takes {wanted} of FILE or PROJECT/GROUP, found {len(options.names)}"
        raise ConfigError(message)
    shown = [_load(name, options) for name in options.names]
    if options.action == "show":
        print("\n".join(_lines(*shown[0])))
    else:
        print("\n".join(_differences(*(_leaves(*each) for each in shown))) or "No differences.")


def _load(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], Source]:
    """Return the keys of a config that are set, and where they were written. Raises ConfigError."""
    try:
        path, is_file = config_file(name), True
    except argparse.ArgumentTypeError as no_file:
        try:
            path, is_file = find_experiments(experiments_dir(options.experiments_dir), name)[0].config_file, False
        except ConfigError as error:
            message = f"{no_file}; {error}"
            raise ConfigError(message) from None
    if is_file and isinstance(data := read_yaml(path).data, dict) and not _OF_TRAINING & data.keys():
        # Of several data sets the first: nothing else differs.
        loaded = load_eval_configs(path, options.overrides)[0]
    else:
        loaded = (load_train_config if is_file else load_experiment_config)(path, options.overrides)
    print_notices(loaded.notices)
    config: Record = loaded.config
    return set_keys(config), loaded.source


def _lines(data: Mapping[str, Any], source: Source, at: KeyPath = ()) -> Iterator[str]:
    """Yield the lines of a config, which is YAML: each value with a comment that says where it is from."""
    for key, value in data.items():
        start = f"{'  ' * len(at)}{in_one_line(key)}:"
        if isinstance(value, dict) and value:
            yield start
            yield from _lines(value, source, (*at, key))
        else:
            yield f"{f'{start} {in_one_line(value)}':<40}  # {_origin(source, (*at, key))}"


def _origin(source: Source, at: KeyPath) -> str:
    is_written = value_at(source.data, at, _ABSENT) is not _ABSENT
    return str(source.locate(at)) if is_written else "default"


def _leaves(data: Mapping[str, Any], source: Source, at: KeyPath = ()) -> dict[str, tuple[str, str]]:
    """Return every value, in one line, and its origin, by its key."""
    leaves: dict[str, tuple[str, str]] = {}
    for key, value in data.items():
        path = (*at, key)
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, source, path)
        else:
            leaves[dotted(path)] = (in_one_line(value), _origin(source, path))
    return leaves


def _differences(*sides: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield three lines for each key whose values differ: the key, and both values with their origins."""
    for key in dict.fromkeys(chain(*sides)):
        pairs = [side.get(key, ("not set", "")) for side in sides]
        if pairs[0][0] != pairs[1][0]:
            width = max(len(value) for value, _ in pairs)
            yield key
            yield from (f"  {value:<{width}}  {origin}".rstrip() for value, origin in pairs)
