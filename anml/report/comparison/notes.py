"""What a reader must know of a table in which not everything is equal."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from anml.config.training import TrainConfig
from anml.report.comparison.contender import Contender
from anml.report.comparison.evaluation import Alignment
from anml.report.grouping import grouped
from anml.report.wording import listed


def table_notes(contenders: Sequence[Contender], matches: Sequence[Alignment]) -> list[str]:
    """Return sentences on differences that a table allows for."""
    places = sorted({place for match in matches for place in match.flavors})
    here = [contenders[place] for place in places]
    notes = [
        *_differing(
            here, lambda config: f"{config.image_shape[1]}x{config.image_shape[1]} pixels", "Images differ in size"
        ),
        *_differing(here, lambda config: f"{config.model_record.num_classes:,}", "Outputs differ in number"),
        *_other_names(contenders, matches),
        *(note for match in matches for note in _other_seeds(contenders, match)),
    ]
    if unknown := [contender.label for contender in here if contender.config is None]:
        notes.append(f"What the flavors of {listed(unknown)} do is unknown, so they have columns of their own.")
    return notes


def _differing(contenders: Sequence[Contender], read: Callable[[TrainConfig], Hashable], what: str) -> Iterator[str]:
    values = {contender.label: read(contender.config) for contender in contenders if contender.config}
    if len(set(values.values())) > 1:
        yield f"{what}: {_by_value(values)}."


def _by_value(values: Mapping[str, Hashable]) -> str:
    """Return `ANML and SANML 28, OML 84`."""
    labels = grouped(values, lambda label: values[label])
    return ", ".join(f"{listed(names)} {value}" for value, names in labels.items())


def _other_names(contenders: Sequence[Contender], matches: Sequence[Alignment]) -> Iterator[str]:
    for place, contender in enumerate(contenders):
        names = {
            match.label: match.flavors[place] for match in matches if match.flavors.get(place, match.name) != match.name
        }
        if names:
            yield f"{contender.label} calls {', '.join(f'{label} {name}' for label, name in names.items())}."


def _other_seeds(contenders: Sequence[Contender], match: Alignment) -> Iterator[str]:
    seeds = {}
    for place, flavor in match.flavors.items():
        config = contenders[place].config
        if config and flavor in config.eval:
            seeds[contenders[place].label] = config.eval[flavor].seed
    if len(set(seeds.values())) > 1:
        yield f"{match.label}: seeds differ, so runs are not of the same classes and examples: {_by_value(seeds)}."
