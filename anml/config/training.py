"""One experiment: a model, its trainings (by inner learning rate and seed), and the evaluations that follow."""

import math
import re
from collections.abc import Mapping
from itertools import product
from typing import Any, Literal, NamedTuple

from anml.config.binding import Arguments, Count, Fraction, NotNegative, OneOrMany, Rate, Record
from anml.config.evaluation import (
    ClassSplit,
    ClassSplitKey,
    DataRequest,
    DatasetName,
    EvalConfig,
    eval_request,
    folder_facts,
)
from anml.config.facts import Dataset, find_dataset
from anml.config.methods import Method, MethodName, find_method
from anml.config.model_args import ModelArgs, ModelName, named_part
from anml.errors import ConfigError

_TAG = re.compile(r"(?:inner-lr-(?P<inner_lr>[\d.e+-]+?))?-?(?:seed-(?P<seed>-?\d+))?")
_MODEL = re.compile(r"(?P<name>.*)-inner-lr-(?P<inner_lr>\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


class TrainingId(NamedTuple):
    """One of an experiment's trainings. None: not varied, all trainings have the same."""

    inner_lr: float | None = None
    seed: int | None = None

    @property
    def tag(self) -> str:
        """`inner-lr-0.05-seed-1`, `seed-1` or nothing: a part of the names of folders, files and jobs."""
        return "-".join(f"{name.replace('_', '-')}-{value}" for name, value in self.varied)

    @property
    def words(self) -> str:
        """`inner_lr 0.05, seed 1`, `seed 1` or nothing."""
        return ", ".join(f"{name} {value}" for name, value in self.varied)

    def flags(self, prefix: str = "--") -> tuple[str, ...]:
        """Return the arguments that name this training on a command line."""
        return tuple(word for name, value in self.varied for word in (prefix + name.replace("_", "-"), str(value)))

    @property
    def varied(self) -> list[tuple[str, float]]:
        return [(name, value) for name, value in self._asdict().items() if value is not None]


def training_of_tag(tag: str) -> TrainingId:
    """Return the training that a tag names. Raises ValueError."""
    found = _TAG.fullmatch(tag)
    if found is None:
        message = f"{tag!r} names no training"
        raise ValueError(message)
    rate, seed = found["inner_lr"], found["seed"]
    return TrainingId(None if rate is None else float(rate), None if seed is None else int(seed))


def training_order(one: TrainingId) -> tuple[float, float]:
    """Return what trainings are sorted by: their inner rates and seeds as numbers; what is not varied comes first."""
    inner_lr, seed = (-math.inf if value is None else float(value) for value in one)
    return inner_lr, seed


def model_order(name: str) -> tuple[str, float]:
    """Return what names of models are sorted by: `anml-inner-lr-1e-05` comes before `anml-inner-lr-0.05`."""
    found = _MODEL.fullmatch(name)
    return (name, -math.inf) if found is None else (found["name"], float(found["inner_lr"]))


LoboScale = Literal["all_rows", "each_row"]
EngineName = Literal["auto", "graph", "compiled", "native", "sweep", "fast", "reference"]


class InnerOptimizer(NamedTuple):
    """What takes the steps of the inner loop, plain SGD, as every engine gets it."""

    lr: float


class TrainConfig(Record):
    """An experiment, as written in `configs/train-*.yml`. Keys are those of higherANML where it has them.

    An episode trains `num_batches` batches of `batch_size` examples of one class (`train_cycles` times over), then
    updates the model on those and on `remember_size` random examples. `epochs` and `eval_steps` count episodes, for
    `train_method: iid` epochs of the data and optimizer steps.
    """

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    cluster: str | None = None

    dataset: DatasetName
    data_path: str | None = None
    im_size: Count | None = None
    augment: bool = False
    train_size: Count | None = None
    imgs_per_class: Count | None = None
    # Only the first so many background classes: a small problem that a laptop learns in a minute.
    train_classes: Count | None = None
    # Of images-folder: a fraction or names; loading turns it into the names of all classes that are used.
    class_split: ClassSplitKey | None = None
    # Here and below, None and not the default itself is not written down: config.yml files of earlier versions stay
    # the same text.
    allow_incomplete: bool | None = None

    train_method: MethodName = "meta"
    sample_method: Literal["single", "uniform"] = "single"
    batch_size: Count = 1
    num_batches: Count | None = None
    train_cycles: Count = 1
    val_size: NotNegative = 0
    remember_size: NotNegative = 64
    remember_only: bool = False
    lobotomize: bool = True
    inner_lr: Rate = 0.1
    inner_lrs: OneOrMany[Rate] | None = None
    outer_lr: Rate = 0.001
    # A schedule of outer_lr by episode.
    outer_lr_scheduler: str | None = None
    outer_lr_scheduler_args: dict[str, Any] | None = None
    max_grad_norm: Rate | None = None
    # Checkpoints hold an exponential moving average of the weights, and evaluations are of it.
    ema_decay: Fraction | None = None
    epochs: Count = 25000
    max_steps: Count | None = None
    save_freq: Count = 500
    log_freq: Count = 10
    seed: int = 1
    seeds: OneOrMany[int] | None = None
    # One job does the trainings of all seeds and inner_lrs, on a GPU at once. Unset is false.
    train_together: bool | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # The same bits each time on the same GPU. Unset is true.
    deterministic: bool | None = None
    engine: EngineName = "auto"

    model: ModelName
    model_name: str | None = None
    model_args: Arguments = {}
    inner_params: OneOrMany[str] = ("all",)
    outer_params: OneOrMany[str] = ("all",)
    output_layer: str = "head"

    lr: Rate = 0.001
    optimizer: str = "Adam"
    optimizer_args: Arguments = {}
    lr_scheduler: str | None = None
    lr_scheduler_args: Arguments = {}
    # 0, as in higherANML, is never.
    lobo_rate: NotNegative | None = None
    lobo_size: NotNegative | None = None
    # What kaiming_normal takes for its matrix: all re-drawn rows, or each by itself. Loading fills it in where rows are
    # re-drawn.
    lobo_scale: LoboScale | None = None

    eval_steps: OneOrMany[Count] | None = None
    # Also evaluates the network before any training: what the meta-training added can then be read off the report.
    eval_untrained: bool = False
    eval: Mapping[str, EvalConfig] = {}

    @property
    def facts(self) -> Dataset:
        """The training data set. Raises ConfigError when a user's own is gone."""
        dataset = find_dataset(self.dataset)
        if dataset.needs_counting and self._named_split and self.imgs_per_class:
            return folder_facts(self._named_split, self.imgs_per_class)
        return dataset

    @property
    def method(self) -> Method:
        return find_method(self.train_method)

    @property
    def inner_optimizer(self) -> InnerOptimizer:
        return InnerOptimizer(self.inner_lr)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[channels, height, width] of the images the model sees."""
        size = self.im_size or self.facts.default_size
        return (self.facts.channels, size, size)

    @property
    def train_request(self) -> DataRequest:
        split, size, allow_incomplete = self._named_split, self.image_shape[1], bool(self.allow_incomplete)
        classes, examples = (split.train, self.imgs_per_class) if split else ((), None)
        return DataRequest(self.dataset, "train", size, self.data_path, classes, examples, allow_incomplete)

    def eval_request(self, flavor: EvalConfig) -> DataRequest:
        if flavor.is_validation:
            # As complete as for training: in a copy that lacks some, other classes would be the first ones.
            return self.train_request._replace(first_class=self.num_train_classes)
        size, dataset = self.image_shape[1], flavor.dataset or self.dataset
        return eval_request(flavor, dataset, size, flavor.data_path, self._named_split, self.imgs_per_class)

    @property
    def _named_split(self) -> ClassSplit | None:
        return self.class_split if isinstance(self.class_split, ClassSplit) else None

    @property
    def model_record(self) -> ModelArgs:
        return named_part("model", self.model).args(**self.model_args)

    @property
    def display_name(self) -> str:
        return self.model_name or self.model.rpartition(":")[2]  # Of a user's own model the name of its class.

    @property
    def training_seeds(self) -> tuple[int, ...]:
        return self.seeds or (self.seed,)

    @property
    def trainings(self) -> tuple[TrainingId, ...]:
        return tuple(TrainingId(*pair) for pair in product(self.inner_lrs or (None,), self.seeds or (None,)))

    def training_id(self, inner_lr: float | None, seed: int | None) -> TrainingId:
        """Return the training with this inner rate and seed; what is not varied may be anything. Raises ConfigError."""
        wanted = TrainingId(inner_lr if self.inner_lrs else None, seed if self.seeds else None)
        if wanted not in self.trainings:
            names = {"--inner-lr": self.inner_lrs or (), "--seed": self.seeds or ()}
            choices = [f"{flag} {' | '.join(map(str, values))}" for flag, values in names.items() if values]
            message = f"this config has several trainings; say which one: {', '.join(choices)}"
            raise ConfigError(message)
        return wanted

    def for_training(self, training: TrainingId) -> "TrainConfig":
        """Return the config of one of the trainings by itself. A model is named after its own inner rate."""
        changes: dict[str, Any] = {"inner_lrs": None, "seeds": None, "train_together": None, **dict(training.varied)}
        if training.inner_lr is not None:
            changes["model_name"] = f"{self.display_name}-{TrainingId(inner_lr=training.inner_lr).tag}"
        return self.model_copy(update=changes)

    @property
    def images_per_class(self) -> int:
        return self.imgs_per_class or self.facts.examples_per_class

    @property
    def examples_per_class(self) -> int:
        """Examples of each background class that training may see; the others are for validation."""
        return self.train_size or self.images_per_class

    @property
    def num_train_classes(self) -> int:
        return self.train_classes or self.facts.train_classes

    @property
    def num_held_out_classes(self) -> int:
        """Background classes that training does not use: those of `split: validation`."""
        return max(0, self.facts.train_classes - self.num_train_classes)

    @property
    def is_zapped(self) -> bool:
        """Whether i.i.d. training re-draws output rows ("zapping")."""
        return not self.method.is_episodic and bool(self.lobo_rate and self.lobo_size)

    @property
    def inner_steps(self) -> int:
        return self.num_batches or max(1, self.examples_per_class // self.batch_size)

    @property
    def total_steps(self) -> int:
        """Episodes (or, for i.i.d. training, optimizer steps) of the whole training."""
        images = self.num_train_classes * self.examples_per_class
        steps = self.epochs * (1 if self.method.is_episodic else -(-images // self.batch_size))
        return min(steps, self.max_steps or steps)

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps after which the model is kept and evaluated; a step beyond the end means the final model."""
        wanted = self.eval_steps or (self.total_steps,)
        return tuple(sorted({min(step, self.total_steps) for step in wanted}))
