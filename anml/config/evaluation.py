"""One evaluation ("flavor"): its protocol, its learning rates, and the images that it needs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from anml.config.binding import Arguments, Count, Many, NotNegative, OneOrMany, Rate, Record, as_list, name_or_reference
from anml.config.facts import DATASETS, IMAGES_FOLDER, Dataset, Split, dataset_label, find_dataset, validation_name
from anml.config.protocols import EvalMethod, EvalProtocol, find_protocol
from anml.errors import ConfigError


def _check_dataset(name: str) -> str:
    try:
        find_dataset(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return name


# The name of a data set, or FILE.py:NAME or MODULE:NAME of a user's own.
DatasetName = Annotated[str, name_or_reference(DATASETS), AfterValidator(_check_dataset)]


class ClassSplit(Record):
    """Names of the classes that training and evaluation use."""

    train: Many[str] = ()
    eval: Many[str] = ()


def _split_kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "names"
    return "split" if isinstance(value, (dict, ClassSplit)) else "fraction"


# A fraction, the names of the training classes, or both lists. The kind comes first: an error speaks of it alone.
ClassSplitKey: TypeAlias = Annotated[
    Annotated[float, Field(ge=0, le=1), Tag("fraction")]
    | Annotated[Many[str], Field(min_length=1), Tag("names")]
    | Annotated[ClassSplit, Tag("split")],
    Discriminator(_split_kind),
]


def folder_facts(split: ClassSplit, examples: int) -> Dataset:
    """Return the facts of a folder whose classes have been counted."""
    return DATASETS[IMAGES_FOLDER]._replace(
        train_classes=len(split.train), eval_classes=len(split.eval), examples_per_class=examples
    )


# How much of a running mean each step keeps: 0, nothing of the steps before.
Decay = Annotated[float, Field(ge=0, lt=1)]
# A period, or the class counts themselves. The kind is told first: an error then speaks of it alone.
EvalFrequency = Annotated[
    Annotated[NotNegative, Tag("period")] | Annotated[Many[Count], Field(min_length=1), Tag("counts")],
    Discriminator(lambda value: "counts" if isinstance(value, (list, tuple)) else "period"),
]


class Stepper(NamedTuple):
    """An optimizer of torch's with its arguments, and a schedule of its rate by step, if there is one."""

    optimizer: str = "Adam"
    args: Mapping[str, Any] = {}
    schedule: str | None = None
    schedule_args: Mapping[str, Any] = {}


ADAM = Stepper()


class Choice(Record):
    """What an evaluation chooses on held-out background classes, before it scores the choice on its own classes.

    by: what is chosen; the other settings are as the flavor has them. flavor: the flavor that tries all candidates on
    held-out classes; loading makes it.
    """

    on: Literal["validation"]
    by: OneOrMany[Literal["lr", "checkpoint"]] = ("lr",)
    flavor: str | None = None

    @property
    def takes_checkpoint(self) -> bool:
        return "checkpoint" in self.by


class Extent(Record):
    """How large a sweep was before `anml add` made it larger: what of an evaluation may grow."""

    classes: Many[Count]
    train_examples: Many[Count]
    test_examples: Many[Count]
    lr: Many[Rate]
    runs: Count


class Until(Record):
    """How narrow the 95% interval of the accuracy with all classes is to be, and how many runs that may cost."""

    half_width: Annotated[float, Field(gt=0, lt=1)]
    at_most: Count


class EvalConfig(Record):
    """What happens at test-train and test-test. The sweep is the product of all lists.

    `classes`: unseen classes to learn. `train_examples`, `test_examples`: per class. `reinit_params`, `opt_params`:
    `all`, `head`, or prefixes of parameter names. `eval_freq`: a period in classes (sequential) or in optimizer steps
    (iid), 0 for only at the end, or a list of class counts. `init_size`: support examples of the least-squares
    solution, 0 for one per class.
    """

    dataset: DatasetName | None = None
    data_path: str | None = None
    im_size: Count | None = None
    # Grey images become colour images for a model of these, and the reverse.
    channels: Literal[1, 3] | None = None
    augment: bool = False
    imgs_per_class: Count | None = None
    # Which classes: those for evaluation, or the background classes that train_classes leaves out, to choose rates and
    # options on. Here and below, None and not the default itself: config.yml files of earlier versions stay the same.
    split: Literal["eval", "validation"] | None = None
    # Rate and checkpoint are chosen on held-out classes, and only the choice is scored on the evaluation classes.
    choose: Choice | None = None
    # Of images-folder. Absent: that of the training, if it is the same folder.
    class_split: ClassSplitKey | None = None
    allow_incomplete: bool | None = None

    train_examples: OneOrMany[Count] = (15,)
    test_examples: OneOrMany[Count] = (5,)
    classes: OneOrMany[Count] = (600,)
    lr: OneOrMany[Rate] = (0.001,)

    eval_method: EvalMethod = "sequential"
    reinit_method: Literal["kaiming", "zero", "lstsq"] = "kaiming"
    # An empty list: the network as it is, its output layer included.
    reinit_params: Annotated[tuple[str, ...], BeforeValidator(as_list), Field(strict=False)] = ("head",)
    # The published table kept the old bias; later code of its authors zeroes it.
    reinit_bias: Literal["zero", "keep"] = "zero"
    opt_params: OneOrMany[str] = ("head",)
    # Adam's; None, torch's (0.9, 0.999), which the published numbers are from.
    adam_betas: Annotated[Many[Decay], Field(min_length=2, max_length=2)] | None = None
    # Test-time augmentation: features are means over the image and copies moved by up to so many steps, of so many
    # pixels (1).
    shifts: Annotated[Count, Field(le=8)] | None = None
    shift_step: Annotated[Count, Field(le=8), AfterValidator(lambda step: None if step == 1 else step)] | None = None
    # Of protocols that read them (`options` in config/protocols.py); here too, None is the usual value.
    feature_map: Literal["hellinger"] | None = None
    metric: Literal["euclidean", "cosine"] | None = None
    shrinkage: Annotated[float, Field(gt=0, le=1)] | None = None
    posterior: Literal["map", "predictive"] | None = None
    prior_alpha: Rate | None = None
    prior_beta: Rate | None = None
    l2: Rate | None = None
    neighbours: Count | None = None
    replay_size: Count | None = None
    # Adam, or any optimizer of torch's; a schedule counts steps.
    optimizer: str | None = None
    optimizer_args: Arguments | None = None
    lr_scheduler: str | None = None
    lr_scheduler_args: Arguments | None = None
    init_size: NotNegative = 256
    # Of all classes, or the first in order of learning, as in higherANML. Unset is random.
    init_examples: Literal["random", "first"] | None = None
    epochs: Count = 1
    batch_size: Count = 256
    eval_freq: EvalFrequency | None = None
    runs: Count = 10
    # More runs than `runs`, as many as make the interval narrow.
    until: Until | None = None
    # Rates that turn out hopeless are not continued. Unset is false.
    race: bool | None = None
    # Besides accuracy, written beside the results (docs/metrics.md).
    measure: OneOrMany[Literal["representation", "confusions"]] | None = None
    # As for training. Unset: as the training has it.
    deterministic: bool | None = None
    engine: Literal["auto", "reference", "native", "lanes"] = "auto"
    # One seed for all trained models: every model then meets the same classes and examples (paired comparison).
    seed: int = 1

    # Checkpoints, for an evaluation by hand: the whole sweep is run on each.
    model: OneOrMany[str] | None = None
    # Model arguments that the tensors of a .pth do not show.
    pth_args: Arguments | None = None
    # Written by `anml add`: the sweeps that this one has grown from, each with jobs of its own.
    grown_from: Many[Extent] | None = None

    @property
    def extent(self) -> Extent:
        return Extent(**{key: getattr(self, key) for key in Extent.model_fields})

    @property
    def stages(self) -> tuple["EvalConfig", ...]:
        """The evaluation as it was launched, as each addition made it, and, last, as it is."""
        extents = [*(self.grown_from or ()), self.extent]
        return tuple(self.model_copy(update=dict(extent) | {"grown_from": None}) for extent in extents)

    def grown(self, wanted: "EvalConfig") -> "EvalConfig | None":
        """Return a larger sweep with this one as a stage of it; None where `wanted` differs otherwise or lacks some."""
        larger = self.model_copy(update=dict(wanted.extent))
        sizes = [(set(getattr(self, key)), set(getattr(wanted, key))) for key in Extent.model_fields if key != "runs"]
        holds_all = wanted.runs >= self.runs and all(before <= after for before, after in sizes)
        has_more = wanted.count_trajectories() > self.count_trajectories()
        if larger != wanted or not (holds_all and has_more) or self.in_one_job:
            return None
        return larger.model_copy(update={"grown_from": (*(self.grown_from or ()), self.extent)})

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's decays of the mean of gradients and of their squares."""
        first, second = self.adam_betas or (0.9, 0.999)
        return first, second

    @property
    def stepper(self) -> Stepper:
        """What takes the steps of learning."""
        name, args = self.optimizer or "Adam", self.optimizer_args or {}
        args = {"betas": self.betas, **args} if name == "Adam" else args
        return Stepper(name, args, self.lr_scheduler, self.lr_scheduler_args or {})

    @property
    def learns_by_adam(self) -> bool:
        """Whether Adam learns, with no other arguments and no schedule: what fast engines do."""
        return self.optimizer in (None, "Adam") and not (self.optimizer_args or self.lr_scheduler)

    @property
    def reservoir(self) -> int:
        """How many examples `replay` keeps."""
        return self.replay_size or 1000

    @property
    def is_validation(self) -> bool:
        """Whether the classes are background classes that training left out."""
        return self.split == "validation"

    @property
    def in_one_job(self) -> bool:
        """Whether what is computed depends on the results before it, so that a sweep is not cut into an array."""
        return bool(self.choose or self.until or self.race)

    @property
    def protocol(self) -> EvalProtocol:
        """What `eval_method` names or refers to. Raises ConfigError when a user's own is gone."""
        return find_protocol(self.eval_method)

    @property
    def needs_least_squares(self) -> bool:
        """Whether the output layer is set by least squares."""
        return self.reinit_method == "lstsq" or self.protocol.solves_head

    def score_points(self, classes: int) -> tuple[int, ...]:
        """Return after how many learned classes a trajectory of `classes` classes is scored that learns in sequence."""
        if isinstance(self.eval_freq, tuple):
            return tuple(sorted({n for n in self.eval_freq if n <= classes} | {classes}))
        freq = max(1, classes // 20) if self.eval_freq is None else self.eval_freq
        return tuple(sorted({1, classes, *range(freq, classes, freq)})) if freq else (classes,)

    def scored(self, classes: int) -> tuple[int, ...]:
        """Return the numbers of learned classes that a trajectory of `classes` classes is scored with."""
        return self.score_points(classes) if self.protocol.in_sequence else (classes,)

    def fewest_results(self) -> int:
        """Return how many trajectories come to their end at least: of a race one rate may be left."""
        racing = len(self.lr) if self.race and self.protocol.learns and not self.choose else 1
        return self.count_trajectories() // racing

    def count_trajectories(self) -> int:
        """Return the number of trajectories of the sweep (see evaluate/sweep.py); a choice has one rate at its end."""
        lrs = len(self.lr) if self.protocol.learns and not self.choose else 1
        return len(self.classes) * len(self.train_examples) * len(self.test_examples) * self.runs * lrs


class DataRequest(NamedTuple):
    """A split of a data set at a size, as anml/data finds or makes it.

    classes, examples: of images-folder, the names of the classes and how many images of each.
    allow_incomplete: accept a copy with fewer (or other) classes and images than the data set has.
    first_class: of the train split, how many classes a training used and an evaluation of the others leaves out.
    channels: what grey or colour images are converted to. normalised_as: the data set whose normalisation they get, of
    images for a model that was trained on another one. None: those of the data set itself.
    """

    dataset: str
    split: Split
    size: int
    data_path: str | None = None
    classes: tuple[str, ...] = ()
    examples: int | None = None
    allow_incomplete: bool = False
    first_class: int = 0
    channels: int | None = None
    normalised_as: str | None = None

    @property
    def folder(self) -> Path | None:
        """The data path, absolute."""
        return Path(self.data_path).expanduser().resolve() if self.data_path else None

    @property
    def name(self) -> str:
        """The name of these images in results."""
        label = dataset_label(self.dataset)
        return validation_name(label) if self.first_class else label


def absolute_path(path: str | None) -> str | None:
    return str(Path(path).expanduser().resolve()) if path else None


def data_path_or_default(path: str | None) -> str | None:
    """Return where the copies of data sets are, absolute: the path given, else ANML_DATA, else None (downloaded)."""
    return absolute_path(path or os.environ.get("ANML_DATA"))


def eval_request(
    config: EvalConfig,
    dataset: str,
    size: int,
    data_path: str | None,
    trained_split: ClassSplit | None = None,
    trained_examples: int | None = None,
    trained_on: str | None = None,
    trained_channels: int | None = None,
) -> DataRequest:
    """Return what to load for an evaluation. An images-folder without a split of its own takes the training's."""
    channels = config.channels or (trained_channels if dataset == trained_on else None)
    normalised_as = trained_on if config.channels and dataset != trained_on else None
    classes, examples = (), None
    if find_dataset(dataset).needs_counting:
        split = config.class_split if isinstance(config.class_split, ClassSplit) else None
        classes = (split or trained_split or ClassSplit()).eval
        examples = config.imgs_per_class if split else trained_examples
    allow_incomplete = bool(config.allow_incomplete)
    return DataRequest(
        dataset, "eval", size, data_path, classes, examples, allow_incomplete,
        channels=channels, normalised_as=normalised_as,
    )  # fmt: skip
