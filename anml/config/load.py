"""From a YAML file and command-line overrides to a checked config: the only way that configs are made."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from anml.config.binding import Record, bind, dotted, located, make_references_absolute, nearest, problem, show
from anml.config.checks import check_eval, check_fits_model, check_flavor_name, check_train, ends_early, overlaps
from anml.config.choice import check_choices, with_candidates
from anml.config.evaluation import EvalConfig, absolute_path, data_path_or_default
from anml.config.facts import DATASETS, canonical_dataset, dataset_label
from anml.config.higheranml import Findings, adopt_eval, adopt_train, name_flavors
from anml.config.image_folder import fill_in_flavor, fill_in_training, flavor_facts
from anml.config.interpolation import interpolate, varied_interpolations
from anml.config.model_args import check_model_args
from anml.config.notices import EVALUATION, TRAINING, unread, varied_in_vain
from anml.config.training import TrainConfig
from anml.config.vary import (
    TrainingId,
    Value,
    adopt_vary,
    cannot_vary,
    changes_of,
    clashes,
    key_path,
    varied_keys,
    with_types,
)
from anml.config.yaml import KeyPath, Location, Source, dump_yaml, read_value, read_yaml
from anml.errors import ConfigError
from anml.plugins import USER_CODE

_TRAIN_KEYS, _EVAL_KEYS = set(TrainConfig.model_fields), set(EvalConfig.model_fields)
_OF_EVALUATION = dict.fromkeys(_EVAL_KEYS - _TRAIN_KEYS, "belongs to an evaluation; write it below a flavor of eval")
_OF_TRAINING = dict.fromkeys(_TRAIN_KEYS - _EVAL_KEYS, "belongs to the training; write it at the top level")
# Keys that may refer to a user's own file; `*` stands for every flavor.
REFERENCE_KEYS: list[KeyPath] = [
    tuple(key.split("."))
    for key in ("model", "dataset", "train_method", "eval_method", "model_args.encoder", "model_args.classifier",
                "eval.*.dataset", "eval.*.eval_method")
]  # fmt: skip

# What the config.yml of an experiment means that is older than a key which loading fills in.
_BEFORE = {"lobo_scale": "each_row", "initialisation": "uniform"}


class LoadedTrain(NamedTuple):
    """A checked training config, what the user should be told about it, and where each key of it was written."""

    config: TrainConfig
    notices: list[str]
    source: Source


class LoadedEval(NamedTuple):
    """A checked evaluation config, what the user should be told about it, and where each key of it was written."""

    config: EvalConfig
    notices: list[str]
    source: Source


def load_train_config(
    path: Path | Source,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    frozen: Path | None = None,
    more: Path | None = None,
) -> LoadedTrain:
    """Read a training config. `overrides` are `key.sub=value`, `options` come from command-line flags.

    path: its file, or what was read of it. frozen: a folder of copies of users' files, which come first. more: a file
    with more flavors, or other values of keys. Raises ConfigError with every problem found.
    """
    source = path if isinstance(path, Source) else read_yaml(path)
    if more:
        _add(source, read_yaml(more))
    _refuse_other_kind(source, _EVAL_KEYS - _TRAIN_KEYS, _OF_TRAINING, "an evaluation config", "train")
    findings = _prepare(source, overrides, options, adopt_train, frozen)
    _split_by_dataset(source, findings)
    config = _bind_training(source, findings)
    flavors = _bind_flavors(source, config, findings)
    config = _bind_points(source, config, flavors, findings) if config else None
    if config is None or findings.problems:
        raise ConfigError(findings.problems)
    return LoadedTrain(_fill_in(config, flavors), findings.notices, source)


def _add(source: Source, more: Source) -> None:
    """Put what another file says into a source, into flavors that are there too. Raises ConfigError."""
    if not isinstance(more.data, dict):
        message = f"{more.locate(())}: expected `eval:` with flavors to add, or other keys of a training config"
        raise ConfigError(message)
    findings = Findings([], [])
    name_flavors(more, findings)
    if findings.problems:
        raise ConfigError(findings.problems)
    flavors = source.data["eval"] | more.data["eval"]
    for name in source.data["eval"].keys() & more.data["eval"].keys():
        flavors[name] = source.data["eval"][name] | (flavors[name] or {})
    source.locations |= {key_path: location for key_path, location in more.locations.items() if key_path}
    source.data |= more.data | {"eval": flavors}


def load_experiment_config(
    path: Path, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None, more: Path | None = None
) -> LoadedTrain:
    """Read the config.yml of an experiment, which says how it was trained.

    One that was written before a key has what was always done then: see `_BEFORE`. Raises ConfigError.
    """
    loaded = load_train_config(path, overrides, options, path.parent / "code" / USER_CODE, more)
    filled = {key: value for key, value in _BEFORE.items() if getattr(loaded.config, key) is not None}
    missing = {key: value for key, value in filled.items() if loaded.source.data.get(key) is None}
    return loaded._replace(config=loaded.config.model_copy(update=missing))


def load_eval_configs(
    path: Path | Source | None, overrides: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> list[LoadedEval]:
    """Read an evaluation config, once for each of its data sets; without a path, the defaults. Raises ConfigError."""
    nothing = Source({}, {(): Location("the command line")})
    source = path if isinstance(path, Source) else read_yaml(path) if path else nothing
    _refuse_other_kind(source, _TRAIN_KEYS - _EVAL_KEYS, _OF_EVALUATION, "a training config", "eval")
    findings = _prepare(source, overrides, options, adopt_eval)
    loaded = []
    for _, settings in _variants("", source.data):
        part = replace(source, data=settings)
        config, problems = bind(EvalConfig, part)
        findings.problems.extend(problems)
        if config:
            config = _check_flavor(config, None, part, (), findings)
            loaded.append((config.model_copy(update={"data_path": absolute_path(config.data_path)}), part))
            for key in ("choose", "until", "race", "measure"):
                if getattr(config, key):
                    findings.problems.append(
                        problem(part, (key,), "is for the evaluations of an experiment; remove it")
                    )
    if findings.problems:
        raise ConfigError(findings.problems)
    return [LoadedEval(config, list(dict.fromkeys(findings.notices)), part) for config, part in loaded]


def dump_config(config: Record) -> str:
    """Return a config as YAML that loads to the same config."""
    return dump_yaml(set_keys(config))


def set_keys(config: Record) -> dict[str, Any]:
    """Return a config as plain data, without unset keys of records.

    A null inside free-form mappings stays: `norm_type: null` is a choice.
    """

    def without_unset(data: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in data.items() if value is not None}

    data = without_unset(config.model_dump())
    if isinstance(config, TrainConfig):
        data["eval"] = {name: without_unset(flavor) for name, flavor in data["eval"].items()}
    return data


def _refuse_other_kind(source: Source, foreign: set[str], its_keys: Mapping[str, str], what: str, kind: str) -> None:
    """Raise ConfigError with one problem if the whole config is of the other kind."""
    if not isinstance(source.data, dict):
        message = f"{source.locate(())}: a config is made of `key: value` lines, found {show(source.data)}"
        raise ConfigError(message)
    misplaced = [key for key in source.data if key in foreign]
    if len(misplaced) > len(set(its_keys) & set(source.data)) + 1:
        example = f"configs/{kind}-omni-anml.yml"
        message = f"{source.locate(())}: this is {what} ({', '.join(misplaced[:3])}, ...); give one like {example}"
        raise ConfigError(message)


def _prepare(
    source: Source,
    overrides: Sequence[str],
    options: Mapping[str, Any] | None,
    adopt: Callable[[Source], Findings],
    frozen: Path | None = None,
) -> Findings:
    """Put --set and command-line flags into the data of the file, and rewrite it into our own spelling."""
    notices, problems = adopt(source)
    for override in overrides:
        try:
            _override(source, override)
        except ConfigError as error:
            problems += error.problems
    for key, value in (options or {}).items():
        if value is not None:
            _set(source, (key,), value, f"--{key.replace('_', '-')}")
    try:
        used = interpolate(source)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    again = adopt(source)
    problems += [problem(source, (key,), "is given twice, here and in vary; keep one") for key in adopt_vary(source)]
    problems += varied_interpolations(source, used, varied_keys(source.data))
    make_references_absolute(source, REFERENCE_KEYS, frozen)
    return Findings(list(dict.fromkeys(notices + again.notices)), problems + again.problems)


def _override(source: Source, override: str) -> None:
    """Set what `key.sub=value` says. Raises ConfigError."""
    name, sign, text = override.partition("=")
    key_path = tuple(part.strip() for part in name.split("."))
    if not sign or not all(key_path):
        message = f"--set {override}: write it as key=value, for instance --set inner_lr=0.05"
        raise ConfigError(message)
    _set(source, key_path, read_value(text, f"--set {name.strip()}"), "--set")


def _set(source: Source, key_path: KeyPath, value: Any, origin: str) -> None:
    target = source.data
    for depth, key in enumerate(key_path[:-1]):
        if key_path[0] == "eval" and depth == 1 and key not in target:
            # A misspelt flavor would otherwise become one more evaluation, of default size.
            hint = nearest(str(key), target) or (f"; there are: {', '.join(target)}" if target else "")
            message = f"{origin} {dotted(key_path)}: there is no flavor {key!r}{hint}"
            raise ConfigError(message)
        if target.get(key) is None:
            target[key] = {}
            source.locations[key_path[: depth + 1]] = Location(origin)
        target = target[key]
        if not isinstance(target, dict):
            message = f"{origin} {dotted(key_path)}: {key} is {show(target)}, so nothing inside it can be set"
            raise ConfigError(message)
    target[key_path[-1]] = value
    source.forget(key_path)
    source.locations[key_path] = Location(origin)


def _split_by_dataset(source: Source, findings: Findings) -> None:
    """Replace a flavor `olft` on `[omniglot, glyphs]` by `olft-omniglot` and `olft-glyphs`, in place; each is a job."""
    flavors = {}
    for name, settings in source.data["eval"].items():
        for new_name, new_settings in _variants(name, settings):
            if new_name != name and (new_name in flavors or new_name in source.data["eval"]):
                message = f"makes a flavor {new_name}, which there is already; rename one, or name a data set once"
                findings.problems.append(problem(source, ("eval", name, "dataset"), message))
            source.copy_locations(("eval", name), ("eval", new_name))
            flavors[new_name] = new_settings
    source.data["eval"] = flavors


def _variants(name: str, settings: Any) -> list[tuple[str, Any]]:
    """Return a flavor with a list of data sets once for each of them, named after it; any other flavor as it is."""
    datasets = settings.get("dataset") if isinstance(settings, dict) else None
    if not isinstance(datasets, list) or not datasets or not all(isinstance(d, str) for d in datasets):
        return [(name, settings)]
    ours = [canonical_dataset(dataset, settings.get("imgs_per_class")) for dataset in datasets]
    return [(f"{name}-{dataset_label(d)}" if len(ours) > 1 else name, settings | {"dataset": d}) for d in ours]


def _worded(source: Source, at: KeyPath, faults: Iterable[tuple[str, str]]) -> list[str]:
    return [problem(source, (*at, key), message) for key, message in faults]


def _bind_training(source: Source, findings: Findings) -> TrainConfig | None:
    """Bind everything but the flavors, and check it if it is well-formed."""
    without_eval = {key: value for key, value in source.data.items() if key != "eval"}
    config, problems = bind(TrainConfig, Source(without_eval, source.locations), elsewhere=_OF_EVALUATION)
    problems += check_model_args(source)
    findings.problems.extend(problems)
    if config is None or problems:
        return None
    try:
        config, notices = fill_in_training(config)
    except ConfigError as error:
        findings.problems.extend(located(source, error.problems))
        return None
    findings.notices.extend(located(source, notices))
    problems = _worded(source, (), check_train(config, "epochs" in source.data))
    findings.problems.extend(problems)
    if not problems:
        findings.notices.extend(_worded(source, (), ends_early(config)) + unread(TRAINING, config, source))
    return config


def _bind_points(
    source: Source, config: TrainConfig, flavors: Mapping[str, EvalConfig], findings: Findings
) -> TrainConfig:
    """Check each training that `vary` makes as a config of its own; return the config with values as their keys' types.

    Here and not in its job: a mistake in the last of many points costs nothing yet.
    """
    if config.vary is None:
        return config
    keys = dict.fromkeys(key for training in config.trainings for key, _ in training.varied)
    reasons = [reason for key in keys if (reason := cannot_vary(key, TrainConfig.model_fields))]
    reasons += clashes(config.trainings)
    if reasons:
        findings.problems.extend(problem(source, ("vary",), reason) for reason in reasons)
        return config
    typed: dict[tuple[str, Value], Value] = {}
    points: list[TrainConfig] = []
    wrong: dict[str, list[str]] = {}
    for training in dict.fromkeys(training.model for training in config.trainings):
        point, problems = _bind_point(source, config, flavors, training)
        for text in problems:
            wrong.setdefault(text, []).append(training.words)
        typed |= {(k, v): x for k, v in training.varied if isinstance(x := getattr(point, k, None), float)}
        points += [point] if point else []
    for text, (first, *more) in wrong.items():
        which = f"{len(more) + 1} trainings, the first with" if more else "the training with"
        findings.problems.append(f"{text} (of {which} {first})")
    if len({point.method.is_episodic for point in (config, *points)}) > 1:
        reason = "train_method: episodes and batches are counted apart; launch an experiment of each"
        findings.problems.append(problem(source, ("vary",), reason))
    if not findings.problems:
        findings.notices.extend(_worded(source, (), varied_in_vain(list(keys), points)))
    return config.model_copy(update={"vary": with_types(config.vary, typed)})


def _bind_point(
    source: Source, config: TrainConfig, flavors: Mapping[str, EvalConfig], training: TrainingId
) -> tuple[TrainConfig | None, list[str]]:
    """Return the config of one training by itself, and what is wrong with it."""
    data = config.model_dump(exclude={"eval", "vary", "seeds", "inner_lrs", "train_together"}, exclude_none=True)
    data |= changes_of(training, data)
    written: dict[KeyPath, Location] = {(): source.locate(("vary",))}
    for path in [key_path(key) for key, _ in training.varied]:
        written[path] = source.locate(("vary", ".".join(path)))
    part = Source(data, written)
    point, problems = bind(TrainConfig, part)
    problems += check_model_args(part)
    if point and not problems:
        problems = _worded(part, (), check_train(point, has_epochs=True))
        for name, flavor in flavors.items():
            problems += _worded(part, ("eval", name), check_fits_model(flavor, point, flavor_facts(flavor, point)))
    return point, problems


def _bind_flavors(source: Source, training: TrainConfig | None, findings: Findings) -> dict[str, EvalConfig]:
    """Bind and check each flavor by itself, so that its problems show whatever else is wrong."""
    flavors = {}
    for name, settings in source.data["eval"].items():
        at = ("eval", name)
        if settings is None:
            findings.problems.append(problem(source, at, "has no settings; write them below it, further to the right"))
            continue
        flavor, problems = bind(EvalConfig, source, at, _OF_TRAINING)
        findings.problems.extend(_worded(source, ("eval",), check_flavor_name(name)) + problems)
        if flavor:
            dataset = training.dataset if training else str(source.data.get("dataset"))
            if flavor.dataset is None and (training or dataset in DATASETS):
                flavor = flavor.model_copy(update={"dataset": dataset})
            flavors[name] = _check_flavor(flavor, training, source, at, findings)
    if training is None:
        return flavors
    for name, reason in check_choices(flavors, training):
        findings.problems.append(problem(source, ("eval", name, "choose"), reason))
    return with_candidates(flavors, training)


def _check_flavor(
    flavor: EvalConfig, training: TrainConfig | None, source: Source, at: KeyPath, findings: Findings
) -> EvalConfig:
    """Check an evaluation, and return it with the classes of an images-folder named (by hand, a checkpoint may)."""
    if training or not at:  # The training's problems come first: they may be of the same folder.
        try:
            flavor, notices = fill_in_flavor(flavor, training, "".join(f"{key}." for key in at), unseen=bool(at))
            findings.notices.extend(located(source, notices))
        except ConfigError as error:
            findings.problems.extend(located(source, error.problems))
    facts = flavor_facts(flavor, training)
    findings.problems.extend(_worded(source, at, check_eval(flavor, facts)))
    findings.notices.extend(unread(EVALUATION, flavor, source, at))
    if training:
        findings.problems.extend(_worded(source, at, check_fits_model(flavor, training, facts)))
        findings.notices.extend(_worded(source, at, overlaps(flavor, training)))
    return flavor


def _fill_in(config: TrainConfig, flavors: Mapping[str, EvalConfig]) -> TrainConfig:
    """Resolve what depends on the machine or on other keys, so that config.yml reproduces the run elsewhere."""
    data_path = data_path_or_default(config.data_path)
    size = config.image_shape[1]
    filled = {
        name: flavor.model_copy(
            update={
                "im_size": flavor.im_size or size,
                "data_path": absolute_path(flavor.data_path) or data_path,
                "allow_incomplete": flavor.allow_incomplete or config.allow_incomplete,
                "deterministic": config.deterministic if flavor.deterministic is None else flavor.deterministic,
            }
        )
        for name, flavor in flavors.items()
    }
    usual = {
        "lobo_scale": "all_rows" if config.is_zapped else None,
        "initialisation": None if config.usual_initialisation == "uniform" else config.usual_initialisation,
    }
    usual = {key: getattr(config, key) or value for key, value in usual.items()}
    return config.model_copy(update={"data_path": data_path, "im_size": size, "eval": filled} | usual)
