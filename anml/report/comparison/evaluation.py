"""What makes two flavors of different experiments the same evaluation: how and on what is learned, not their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from anml.config.training import TrainConfig


class Evaluation(NamedTuple):
    """All keys of a flavor's config that change what its accuracy means; None or empty where one plays no part.

    Not here, since a comparison allows for them: sizes and rates of the sweep, the number of runs, when to score.
    held_out_from: of background classes, how many come before those that were held out (each number leaves others).
    unknown: PROJECT/GROUP/FLAVOR where no config tells more; it equals no other.
    """

    eval_method: str
    dataset: str
    opt_params: tuple[str, ...] = ()
    reinit_params: tuple[str, ...] = ()
    reinit_method: str = ""
    reinit_bias: str = ""
    adam_betas: tuple[float, float] | None = None
    init_size: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    imgs_per_class: int | None = None
    allow_incomplete: bool = False
    class_names: tuple[str, ...] = ()
    held_out_from: int = 0
    unknown: str = ""

    @property
    def pair(self) -> "Evaluation":
        """What a sequential evaluation and its oracle share: all but the order and the batches of the examples."""
        if self.eval_method == "zero_shot":
            return self
        return self._replace(eval_method="", epochs=None, batch_size=None)


def evaluation_of(config: TrainConfig, flavor: str) -> Evaluation:
    """Return what a flavor of a config does."""
    own = config.eval[flavor]
    request = config.eval_request(own)
    learns, shuffled = own.eval_method != "zero_shot", own.eval_method == "iid"
    method = own.reinit_method if learns else "lstsq"
    return Evaluation(
        own.eval_method,
        request.name,
        opt_params=selectors(config, own.opt_params) if learns else (),
        reinit_params=selectors(config, own.reinit_params),
        reinit_method=method,
        reinit_bias=own.reinit_bias,
        adam_betas=own.betas if learns else None,
        init_size=own.init_size if method == "lstsq" else None,
        epochs=own.epochs if shuffled else None,
        batch_size=own.batch_size if shuffled else None,
        imgs_per_class=request.examples,
        allow_incomplete=request.allow_incomplete,
        class_names=request.classes[request.first_class :],
        held_out_from=request.first_class,
    )


def selectors(config: TrainConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of layers with the output layer called `head`, as it is for every model, in one order."""
    return tuple(sorted("head" if name == config.output_layer else name for name in names))


@dataclass
class Alignment:
    """One evaluation, and what each experiment (by its place) calls it.

    difference: what tells it from another of the same name, if there is one.
    """

    name: str
    evaluation: Evaluation
    flavors: dict[int, str]
    difference: str = ""

    @property
    def label(self) -> str:
        """A name that no other has."""
        return f"{self.name} ({self.difference})" if self.difference else self.name


def align(experiments: Sequence[Mapping[str, Evaluation]]) -> list[Alignment]:
    """Return the evaluations of experiments, each given as {flavor: what it does}; oracles follow sequential ones.

    Flavors of the same name come together first, then others that do the same: two flavors of one experiment never do.
    """
    found: list[Alignment] = []
    for place, flavors in enumerate(experiments):
        known = {(match.name, match.evaluation) for match in found}
        for flavor in sorted(flavors, key=lambda name: (name, flavors[name]) not in known):
            match = _match_for(flavor, flavors[flavor], place, found)
            if match is None:
                found.append(Alignment(flavor, flavors[flavor], {place: flavor}))
            else:
                match.flavors[place] = flavor
    _tell_apart(found)
    return _in_pairs(found)


def _match_for(flavor: str, evaluation: Evaluation, place: int, found: Sequence[Alignment]) -> Alignment | None:
    same = [match for match in found if match.evaluation == evaluation and place not in match.flavors]
    named = [match for match in same if match.name == flavor]
    return next(iter(named or same), None)


def _in_pairs(matches: Sequence[Alignment]) -> list[Alignment]:
    places: dict[Evaluation, int] = {}
    for match in matches:
        places.setdefault(match.evaluation.pair, len(places))
    return sorted(matches, key=lambda match: (places[match.evaluation.pair], match.evaluation.eval_method == "iid"))


def _tell_apart(matches: Sequence[Alignment]) -> None:
    """Say of matches of one name, which do different things, in what they differ."""
    names = [match.name for match in matches]
    for match in [match for match in matches if names.count(match.name) > 1]:
        if match.evaluation.unknown:
            match.difference = f"config of {match.evaluation.unknown.rpartition('/')[0]} unreadable"
            continue
        alike = [other.evaluation for other in matches if other.name == match.name and not other.evaluation.unknown]
        keys = [key for key in Evaluation._fields if len({getattr(other, key) for other in alike}) > 1]
        match.difference = "; ".join(_worded(key, getattr(match.evaluation, key)) for key in keys)


def _worded(key: str, value: Any) -> str:
    if key == "class_names":
        return f"{len(value)} classes from {value[0]} on" if value else "all classes"
    if key == "held_out_from":
        return f"held out: all after the first {value} classes"
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{key}: {text}" if text and value is not None else f"no {key}"
