"""Keys that a config gives and that nothing reads: those of another method, or of a setting that stands beside them.

Two tables say which keys these are. They cause notices, not errors: a config composed of others brings such keys along.
For the same reason the notices cover only what the user wrote, and no key that a later setting made idle:
`--set train_method=iid` causes no notice of the file's inner_lr.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from anml.config.binding import Record, problem
from anml.config.evaluation import EvalConfig
from anml.config.methods import METHODS
from anml.config.protocols import PROTOCOLS
from anml.config.training import TrainConfig
from anml.config.vary import key_path
from anml.config.yaml import KeyPath, Location, Rank, Source, value_at

R = TypeVar("R", bound=Record)


class Unread(NamedTuple, Generic[R]):
    """Keys that are not read where `holds`.

    setting: the key that decides it. keys: each with what the notice ends in. anyway: values that ask for what happens
    anyway, of which there is nothing to say. where: how a notice calls the setting (0) and its value (1).
    """

    setting: str
    holds: Callable[[R], bool]
    keys: Mapping[str, str]
    anyway: Mapping[str, Any] = MappingProxyType({})
    where: str = "on {0}: {1}"


_BY_ADAM = "; the outer loop learns by Adam"
# Of i.i.d. training: what training on episodes does anyway.
_ANYWAY = {"optimizer": "Adam", "optimizer_args": {}, "lobo_rate": 0, "lobo_size": 0}
_OF_EPISODES = "; it is for training on episodes"
_OF_INNER_LOOP = (
    "sample_method", "tasks", "train_cycles", "remember_size", "remember_only", "replacement", "inner_optimizer",
    "inner_momentum",
)  # fmt: skip
_EPISODES_ALONE = (*_OF_INNER_LOOP, "engine", "lobo_classes")
_ZAPPING = ("lobo_scale", "lobo_first", "lobo_biased_steps", "lobo_biased_fraction", "lobo_biased_params")
_PERIOD = "; it says every how many epochs rows are re-drawn"
_ROWS = "; it says how many rows are re-drawn"
_UNLEARNED = ", which takes no gradient steps"


TRAINING: tuple[Unread[TrainConfig], ...] = (
    Unread(
        "train_method",
        lambda config: config.method.has_inner_loop,
        {
            "lr": "; did you mean outer_lr or inner_lr?",
            **dict.fromkeys(("optimizer", "optimizer_args"), f"{_BY_ADAM}, the inner one by SGD (inner_optimizer)"),
            **dict.fromkeys(("lobo_rate", "lobo_size"), "; did you mean lobotomize?"),
        },
        _ANYWAY,
    ),
    Unread(
        "train_method",
        lambda config: bool(config.method.head),
        {
            "lr": "; did you mean outer_lr?",
            **dict.fromkeys(("optimizer", "optimizer_args"), _BY_ADAM),
            **dict.fromkeys(("lobo_rate", "lobo_size"), ", which trains no output layer"),
        },
        _ANYWAY,
    ),
    Unread(
        "train_method",
        lambda config: config.method.is_episodic,
        {
            "lr_scheduler": ", whose schedule is outer_lr_scheduler (by episode)",
            "lr_scheduler_args": ", whose schedule has outer_lr_scheduler_args (in episodes)",
            **dict.fromkeys(_ZAPPING, "; it is for the zapping of iid training"),
        },
        {"lr_scheduler_args": {}},
    ),
    Unread(
        "train_method",
        lambda config: not config.method.is_episodic,
        {
            "inner_lr": "; did you mean lr?",
            "outer_lr": "; did you mean lr?",
            "inner_params": ", which trains all parameters",
            "outer_params": ", which trains all parameters",
            "lobotomize": "; did you mean lobo_rate and lobo_size?",
            "num_batches": "; an epoch is all examples, in batches of batch_size",
            **dict.fromkeys(_EPISODES_ALONE, _OF_EPISODES),
        },
        {
            **dict.fromkeys(("inner_params", "outer_params"), ("all",)),
            **dict.fromkeys(("lobotomize", "remember_only"), False),
            "engine": "auto",
        },
    ),
    Unread(
        "train_method",
        lambda config: bool(config.method.head),
        {
            "lobotomize": ", which trains no output layer",
            "val_size": ", which trains no output layer; did you mean keep_best?",
            "num_batches": "; few_shot says how large an episode is",
            "batch_size": "; few_shot says how large an episode is",
            "inner_lr": ", which has no inner loop of gradient steps",
            "inner_params": ", which has no inner loop of gradient steps",
            **dict.fromkeys((*_OF_INNER_LOOP, "lobo_classes"), "; it is for an inner loop of gradient steps"),
        },
        {"lobotomize": False, "val_size": 0, "remember_only": False},
    ),
    Unread(
        "train_method",
        lambda config: bool(config.method.head) and config.engine != "native",
        {"engine": ", which has no inner loop; auto and native run convolution blocks in C++ on a CPU"},
        {"engine": "auto"},
    ),
    Unread(
        "train_method",
        lambda config: not config.method.head,
        {"few_shot": f"; it is for {', '.join(name for name, method in METHODS.items() if method.head)}"},
    ),
    Unread(
        "sample_method",
        lambda config: config.method.has_inner_loop and config.sample_method != "sequential",
        {"tasks": "; it is for sequential"},
    ),
    Unread(
        "lr_scheduler",
        lambda config: not config.method.is_episodic and config.lr_scheduler is None,
        {"lr_scheduler_args": ", whose arguments they are"},
        {"lr_scheduler_args": {}},
        "without {0}",
    ),
    Unread(
        "lobo_rate",
        lambda config: not config.method.is_episodic and not config.lobo_rate,
        {"lobo_size": _PERIOD, **dict.fromkeys(_ZAPPING, _PERIOD)},
        {"lobo_size": 0},
        "without {0}",
    ),
    Unread(
        "lobo_size",
        lambda config: not config.method.is_episodic and not config.lobo_size,
        {"lobo_rate": _ROWS, **dict.fromkeys(_ZAPPING, _ROWS)},
        {"lobo_rate": 0},
        "without {0}",
    ),
    Unread(
        "sample_method",
        lambda config: config.method.has_inner_loop and config.sample_method != "uniform",
        {"lobo_classes": ", which re-draws the rows of all its classes; it is for uniform"},
    ),
    Unread(
        "inner_lrs",
        lambda config: config.inner_lrs is not None,
        {"inner_lr": "; name all rates there, or remove inner_lrs"},
        where="beside {0}",
    ),
    Unread(
        "seeds",
        lambda config: config.seeds is not None,
        {"seed": "; name all seeds there, or remove seeds"},
        where="beside {0}",
    ),
)


def _for_some(option: str) -> Unread[EvalConfig]:
    """Return the row of a key that some protocols alone read."""
    names = ", ".join(name for name, protocol in PROTOCOLS.items() if option in protocol.options)
    return Unread("eval_method", lambda config: option not in config.protocol.options, {option: f"; it is for {names}"})


EVALUATION: tuple[Unread[EvalConfig], ...] = (
    Unread(
        "eval_method",
        lambda config: config.protocol.in_sequence,
        {"epochs": ", which sees every example once; it is for iid"},
        {"epochs": 1},
    ),
    Unread(
        "eval_method",
        lambda config: config.protocol.in_sequence and not config.protocol.takes_batches,
        {"batch_size": ", which learns one example at a time; it is for iid and replay"},
        {"batch_size": 1},
    ),
    Unread(
        "eval_method",
        lambda config: config.protocol.solves_head,
        {"reinit_method": ", whose output layer is always the least-squares solution"},
        {"reinit_method": "lstsq"},
    ),
    Unread(
        "eval_method",
        lambda config: not config.protocol.learns,
        dict.fromkeys(("lr", "opt_params", "adam_betas", "optimizer", "optimizer_args", "lr_scheduler"), _UNLEARNED),
    ),
    Unread(
        "optimizer",
        lambda config: config.optimizer not in (None, "Adam"),
        {"adam_betas": "; write its arguments in optimizer_args"},
    ),
    Unread(
        "eval_method",
        lambda config: not config.protocol.learns and not config.protocol.baseline,
        {**dict.fromkeys(("epochs", "batch_size"), _UNLEARNED), "eval_freq": ", which is scored once"},
    ),
    Unread(
        "eval_method",
        lambda config: bool(config.protocol.baseline),
        dict.fromkeys(("reinit_method", "reinit_bias"), ", whose head starts without any example"),
    ),
    Unread("eval_method", lambda config: not config.protocol.baseline, {"feature_map": "; it is for baselines"}),
    Unread(
        "reinit_method",
        lambda config: not config.needs_least_squares,
        dict.fromkeys(("init_size", "init_examples"), "; it is for least squares: lstsq, or eval_method: zero_shot"),
    ),
    *(_for_some(option) for option in sorted({key for protocol in PROTOCOLS.values() for key in protocol.options})),
)


def unread(table: tuple[Unread[R], ...], config: R, source: Source, at: KeyPath = ()) -> list[str]:
    """Return a notice of every key at a key path, as the user wrote it, that nothing reads."""
    written = _written(config, source, at)
    notices = []
    for row in [row for row in table if row.holds(config)]:
        decided_at = source.locate((*at, row.setting)).rank
        where = row.where.format(row.setting, getattr(config, row.setting))
        for key in [key for key in row.keys if key in written and written[key].rank >= decided_at]:
            if getattr(config, key) != row.anyway.get(key):
                notices.append(problem(source, (*at, key), f"has no effect {where}{row.keys[key]}"))
    return notices


def varied_in_vain(keys: Sequence[str], configs: Sequence[TrainConfig]) -> Iterator[tuple[str, str]]:
    """Yield a notice of every key that varies between trainings and that none of them reads: they are all the same."""
    for key in keys:
        rows = [row for row in TRAINING if key_path(key)[0] in row.keys and all(map(row.holds, configs))]
        if rows:
            where = rows[0].where.format(rows[0].setting, getattr(configs[0], rows[0].setting))
            yield "vary", f"{key} has no effect {where}: its values make no difference"


def _written(config: Record, source: Source, at: KeyPath) -> dict[str, Location]:
    """Return where the user wrote each key; those of a base, and of a config.yml of an experiment, are left out."""
    data = value_at(source.data, at) or {}
    written = {key: source.locate((*at, key)) for key, value in data.items() if value is not None}
    # A config.yml says everything, defaults and what came of bases included.
    is_complete = all(f.default is None or key in data for key, f in type(config).model_fields.items())
    least = Rank.ON_COMMAND_LINE if is_complete else Rank.IN_FILE
    return {key: location for key, location in written.items() if location.rank >= least}
