"""Choices on held-out classes: the flavor that tries all candidates there, and what a choice needs."""

from collections.abc import Iterator, Mapping

from anml.config.checks import check_eval, check_fits_model
from anml.config.evaluation import EvalConfig
from anml.config.image_folder import flavor_facts
from anml.config.training import TrainConfig


def with_candidates(flavors: Mapping[str, EvalConfig], training: TrainConfig) -> dict[str, EvalConfig]:
    """Return flavors, each that chooses preceded by one that tries all candidates: `olft` by `olft-validation`."""
    complete = dict[str, EvalConfig]()
    for name, flavor in flavors.items():
        if flavor.choose and flavor.choose.flavor is None:
            choose = flavor.choose.model_copy(update={"flavor": f"{name}-{flavor.choose.on}"})
            flavor = flavor.model_copy(update={"choose": choose})
            complete[str(choose.flavor)] = _candidates(flavor, training)
        complete[name] = flavor
    return complete


def _candidates(flavor: EvalConfig, training: TrainConfig) -> EvalConfig:
    """Return the same evaluation on held-out classes: on as many as there are, where the flavor has more."""
    most = training.num_held_out_classes or max(flavor.classes)
    classes = tuple(dict.fromkeys(min(number, most) for number in flavor.classes))
    changes = {"split": flavor.choose and flavor.choose.on, "choose": None, "classes": classes, "class_split": None}
    changes |= {"until": None, "measure": None}
    return flavor.model_copy(update=changes)


def check_choices(flavors: Mapping[str, EvalConfig], training: TrainConfig) -> Iterator[tuple[str, str]]:
    """Yield the name of every flavor whose choice cannot be made, and why."""
    complete = with_candidates(flavors, training)
    for name, flavor in flavors.items():
        choose = complete[name].choose
        if choose is None:
            continue
        for reason in _reasons(flavor):
            yield name, reason
        if flavor.choose != choose and choose.flavor in flavors:
            yield name, f"makes a flavor {choose.flavor}, which there is already; rename one"
            continue
        if (candidates := complete.get(str(choose.flavor))) is None or not candidates.is_validation:
            yield name, f"flavor: {choose.flavor} is no flavor with split: validation"
            continue
        # What is wrong with the flavor itself has been said.
        said = set(_faults(flavor, training))
        yield from ((name, fault[1]) for fault in _faults(candidates, training) if fault not in said)


def _faults(flavor: EvalConfig, training: TrainConfig) -> Iterator[tuple[str, str]]:
    facts = flavor_facts(flavor, training)
    yield from check_eval(flavor, facts)
    yield from check_fits_model(flavor, training, facts)


def _reasons(flavor: EvalConfig) -> Iterator[str]:
    by = flavor.choose.by if flavor.choose else ()
    if flavor.is_validation:
        yield "its classes are held out already (split: validation); leave split out"
    if "lr" in by and not flavor.protocol.learns:
        yield f"eval_method: {flavor.eval_method} has no learning rate; use by: [checkpoint]"
    if "lr" not in by and flavor.protocol.learns and len(flavor.lr) > 1:
        yield "by leaves out lr, but the flavor has several; add lr to by, or fix a single one"
