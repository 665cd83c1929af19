"""One experiment: a model, its trainings (by inner learning rate and seed), and the evaluations that follow."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from anml.config.binding import Amount, Arguments, Count, Fraction, Many, NotNegative, OneOrMany, Rate, Record
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
from anml.config.methods import InnerOptimizer, Method, MethodName, find_method
from anml.config.model_args import ClassifierArgs, Initialisation, ModelArgs, ModelName, named_part
from anml.config.vary import TrainingId, Value, all_points, changes_of, choices, key_path
from anml.config.yaml import value_at
from anml.errors import ConfigError


def amount_of(amount: float, whole: int, rounded: Callable[[float], int]) -> int:
    """Return a number as it is, or a fraction (a float) of a whole, rounded as scikit-learn's train_test_split does."""
    return rounded(amount * whole) if isinstance(amount, float) else amount


LoboScale = Literal["all_rows", "each_row"]
# Values by key, whose product is trained, or points picked by hand. The kind comes first: an error speaks of it alone.
VaryKey = Annotated[
    Annotated[Mapping[str, Annotated[OneOrMany[Value], Field(min_length=1)]], Tag("product")]
    | Annotated[Many[Mapping[str, Value]], Field(min_length=1), Tag("points")],
    Discriminator(lambda value: "points" if isinstance(value, (list, tuple)) else "product"),
]
Precision = Literal["float32", "tf32", "bf16-mixed"]
EngineName = Literal["auto", "graph", "triton", "compiled", "native", "sweep", "fast", "reference"]


class FewShot(Record):
    """An episode of `prototypes` and `gemcl`: a head learns `shots` examples of `ways` classes, `queries` are its test.

    temperature: multiplies the logits. The other keys are those of the head, as in an evaluation.
    """

    ways: Count = 20
    shots: Count = 5
    queries: Count = 5
    temperature: Rate = 1.0
    metric: Literal["euclidean", "cosine"] | None = None
    posterior: Literal["map", "predictive"] | None = None
    prior_alpha: Rate | None = None
    prior_beta: Rate | None = None

    @property
    def head_options(self) -> dict[str, Any]:
        """The keys of the head that are set."""
        return self.model_dump(exclude={"ways", "shots", "queries", "temperature"}, exclude_none=True)


class AddedCheckpoint(Record):
    """A checkpoint of another training, which an experiment evaluates too. step: as its card or its name says."""

    path: str
    step: NotNegative


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
    # Colour images become grey ones, or the reverse. Unset: as the data set has them.
    channels: Literal[1, 3] | None = None
    augment: bool = False
    train_size: Amount | None = None
    # Examples of each class that only validation sees. Unset: all that train_size leaves over.
    val_examples: Amount | None = None
    imgs_per_class: Count | None = None
    # Only the first so many background classes: a small problem that a laptop learns in a minute.
    train_classes: Count | None = None
    # Each background class is as many classes as angles (degrees): an image turned is of another class.
    rotations: Annotated[Many[Literal[0, 90, 180, 270]], Field(min_length=1)] | None = None
    # Of images-folder: a fraction or names; loading turns it into the names of all classes that are used.
    class_split: ClassSplitKey | None = None
    # Here and below, None and not the default itself is not written down: config.yml files of earlier versions stay
    # the same text.
    allow_incomplete: bool | None = None

    train_method: MethodName = "meta"
    sample_method: Literal["single", "uniform", "sequential"] = "single"
    # How many classes a sequential inner loop learns, one after the other.
    tasks: Count | None = None
    batch_size: Count = 1
    num_batches: Count | None = None
    train_cycles: Count = 1
    # An inner loop of more examples than a class has draws some of them again. Unset is false.
    replacement: bool | None = None
    # Of prototypes and gemcl; unset, its default values.
    few_shot: FewShot | None = None
    val_size: NotNegative = 0
    remember_size: NotNegative = 64
    remember_only: bool = False
    lobotomize: bool = True
    # Where sample_method is uniform: re-draw the rows of all classes of the inner loop, or that of its first example.
    lobo_classes: Literal["all", "first"] | None = None
    inner_lr: Rate = 0.1
    inner_lrs: OneOrMany[Rate] | None = None
    # Unset is sgd. With meta-sgd each parameter has a rate of its own, which is learned; inner_lr is where all begin.
    inner_optimizer: Literal["sgd", "meta-sgd"] | None = None
    inner_momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    outer_lr: Rate = 0.001
    # A schedule of outer_lr by episode.
    outer_lr_scheduler: str | None = None
    outer_lr_scheduler_args: dict[str, Any] | None = None
    max_grad_norm: Rate | None = None
    # An update whose loss or gradient is not finite ends the training, or is left out. Unset is fail.
    on_divergence: Literal["fail", "skip"] | None = None
    # Checkpoints hold an exponential moving average of the weights, and evaluations are of it.
    ema_decay: Fraction | None = None
    # Checkpoints hold the model that was best so far, by class means, on background classes that training leaves out.
    keep_best: Literal["validation"] | None = None
    # Training ends after so many of these validations in a row without a better one.
    patience: Count | None = None
    epochs: Count = 25000
    max_steps: Count | None = None
    save_freq: Count = 500
    log_freq: Count = 10
    seed: int = 1
    seeds: OneOrMany[int] | None = None
    # What else differs between trainings: all combinations of values by key, or a list of points.
    vary: VaryKey | None = None
    # Written by `anml add`: keys that vary only since then. They do not name trainings with the config's own value.
    vary_later: OneOrMany[str] | None = None
    # One job does all trainings that differ in rates and seeds alone, on a GPU at once. Unset is false.
    train_together: bool | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # The same bits each time on the same GPU. Unset is true.
    deterministic: bool | None = None
    # What trainings multiply in. Unset is float32.
    precision: Precision | None = None
    engine: EngineName = "auto"

    model: ModelName
    model_name: str | None = None
    model_args: Arguments = {}
    # Unset is `uniform`; loading fills in what the model's authors do where that is another.
    initialisation: Initialisation | None = None
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
    # How many epochs come before the first re-drawing. Unset: lobo_rate.
    lobo_first: NotNegative | None = None
    # After each re-drawing so many steps on batches that hold a fraction of examples of the classes re-drawn, which
    # change these parameters only.
    lobo_biased_steps: NotNegative | None = None
    lobo_biased_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    lobo_biased_params: OneOrMany[str] | None = None

    eval_steps: OneOrMany[Count] | None = None
    # Also evaluates the network before any training: what the meta-training added can then be read off the report.
    eval_untrained: bool = False
    eval: Mapping[str, EvalConfig] = {}
    # Written by `anml add --checkpoint`: other checkpoints by the names that results have for them.
    eval_checkpoints: Mapping[str, AddedCheckpoint] | None = None
    # Whether evaluations take what other experiments have measured of the same content. Unset is true.
    reuse: bool | None = None

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
    def inner(self) -> InnerOptimizer:
        return InnerOptimizer(self.inner_lr, self.inner_momentum or 0.0, self.inner_optimizer == "meta-sgd")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[channels, height, width] of the images the model sees."""
        size = self.im_size or self.facts.default_size
        return (self.channels or self.facts.channels, size, size)

    @property
    def train_request(self) -> DataRequest:
        split, size, allow_incomplete = self._named_split, self.image_shape[1], bool(self.allow_incomplete)
        classes, examples = (split.train, self.imgs_per_class) if split else ((), None)
        return DataRequest(
            self.dataset, "train", size, self.data_path, classes, examples, allow_incomplete, channels=self.channels
        )

    def eval_request(self, flavor: EvalConfig) -> DataRequest:
        if flavor.is_validation:
            # As complete as for training: in a copy that lacks some, other classes would be the first ones.
            return self.train_request._replace(first_class=self.num_train_classes)
        size, dataset = self.image_shape[1], flavor.dataset or self.dataset
        of_training = (self._named_split, self.imgs_per_class, self.dataset, self.channels)
        return eval_request(flavor, dataset, size, flavor.data_path, *of_training)

    @property
    def _named_split(self) -> ClassSplit | None:
        return self.class_split if isinstance(self.class_split, ClassSplit) else None

    @property
    def model_record(self) -> ModelArgs:
        return named_part("model", self.model).args(**self.model_args)

    @property
    def added_checkpoints(self) -> Mapping[str, AddedCheckpoint]:
        """The checkpoints of other trainings, by the names that results have for them."""
        return self.eval_checkpoints or {}

    @property
    def usual_initialisation(self) -> Initialisation:
        """How the authors of the model draw its first weights."""
        record = self.model_record
        kind, name = ("encoder", record.encoder) if isinstance(record, ClassifierArgs) else ("model", self.model)
        return named_part(kind, name).initialisation

    @property
    def display_name(self) -> str:
        return self.model_name or self.model.rpartition(":")[2]  # Of a user's own model the name of its class.

    @property
    def trainings(self) -> tuple[TrainingId, ...]:
        points = all_points(self.vary, self.inner_lrs, self.seeds)
        usual = self.values_of(TrainingId(), self.vary_later) if self.vary_later else {}
        return tuple(TrainingId(tuple((k, v) for k, v in p.varied if k not in usual or v != usual[k])) for p in points)

    @property
    def training_groups(self) -> dict[TrainingId, list[TrainingId]]:
        """The trainings that one job does, by what they have in common."""
        groups: dict[TrainingId, list[TrainingId]] = {}
        for training in self.trainings:
            groups.setdefault(training.together if self.train_together else training, []).append(training)
        return groups

    def training_id(self, inner_lr: float | None = None, seed: int | None = None, tag: str | None = None) -> TrainingId:
        """Return the training with this inner rate, seed and tag; what does not vary may be anything.

        Raises ConfigError unless there is one such training.
        """
        given = {key: value for key, value in (("inner_lr", inner_lr), ("seed", seed)) if value is not None}
        varied = [dict(training.varied) for training in self.trainings]
        vary = [key for key in given if any(key in each for each in varied)]
        fitting = [
            training
            for training, each in zip(self.trainings, varied, strict=True)
            if tag in (None, training.tag) and all(given[k] == each.get(k, getattr(self, k)) for k in vary)
        ]
        if len(fitting) != 1:
            fitting = [training for training in fitting if tag is None and dict(training.varied) == given]
        if len(fitting) != 1:
            message = f"this config has several trainings; say which one: {choices(self.trainings)}"
            raise ConfigError(message)
        return fitting[0]

    def values_of(self, training: TrainingId, keys: Iterable[str]) -> dict[str, Value]:
        """Return a training's values of these dotted keys, those that it has in common with others too."""
        alone = self.for_training(training).model_dump(include={key_path(key)[0] for key in keys})
        return {key: value_at(alone, key_path(key)) for key in keys}

    def for_training(self, training: TrainingId) -> "TrainConfig":
        """Return the config of one of the trainings by itself. A model is named after what varies but its seed."""
        changes: dict[str, Any] = {"inner_lrs": None, "seeds": None, "vary": None, "train_together": None}
        changes |= changes_of(training, dict(self))
        if training.model.varied:
            changes["model_name"] = f"{self.display_name}-{training.model.tag}"
        # A single name becomes a list, and what is inside `few_shot` its record, as in a config that is read.
        config = TrainConfig.model_validate(dict(self) | changes)
        if "initialisation" in changes or (self.initialisation or "uniform") != self.usual_initialisation:
            return config
        usual = config.usual_initialisation  # That of the model that this training has, as loading fills it in.
        return config.model_copy(update={"initialisation": None if usual == "uniform" else usual})

    @property
    def images_per_class(self) -> int:
        return self.imgs_per_class or self.facts.examples_per_class

    @property
    def examples_per_class(self) -> int:
        """Examples of each background class that training may see; the others are for validation."""
        if self.train_size is None:
            return self.images_per_class - (self.validation_examples or 0)
        return amount_of(self.train_size, self.images_per_class, math.floor)

    @property
    def validation_examples(self) -> int | None:
        """Examples of each background class for validation. None: all that training leaves over."""
        return None if self.val_examples is None else amount_of(self.val_examples, self.images_per_class, math.ceil)

    @property
    def num_train_classes(self) -> int:
        return self.train_classes or self.facts.train_classes

    @property
    def num_labels(self) -> int:
        """Classes as training counts them: each rotation of a class is one."""
        return self.num_train_classes * len(self.rotations or (0,))

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
        of_one = self.num_batches or max(1, self.examples_per_class // self.batch_size)
        return of_one * (self.tasks or 1 if self.sample_method == "sequential" else 1)

    @property
    def total_steps(self) -> int:
        """Episodes (or, for i.i.d. training, optimizer steps) of the whole training."""
        steps = self.epochs if self.method.is_episodic else self.first_step(self.epochs)
        return min(steps, self.max_steps or steps)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch of i.i.d. training, without biased ones."""
        return -(-self.num_labels * self.examples_per_class // self.batch_size)

    def is_zapping(self, epoch: int) -> bool:
        """Say whether output rows are re-drawn before an epoch, counted from 0."""
        return self.is_zapped and self._zappings(epoch + 1) > self._zappings(epoch)

    def first_step(self, epoch: int) -> int:
        """Return the first step of an epoch of i.i.d. training, both counted from 0; biased steps begin an epoch."""
        biased = self._zappings(epoch) * (self.lobo_biased_steps or 0) if self.is_zapped else 0
        return epoch * self.steps_per_epoch + biased

    def _zappings(self, epochs: int) -> int:
        """Count how often rows are re-drawn in the first epochs."""
        period = self.lobo_rate or 1
        first = period if self.lobo_first is None else self.lobo_first
        return max(0, -(-(epochs - first) // period))

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps after which the model is kept and evaluated; a step beyond the end means the final model."""
        wanted = self.eval_steps or (self.total_steps,)
        return tuple(sorted({min(step, self.total_steps) for step in wanted}))

    @property
    def evaluated_steps(self) -> tuple[int, ...]:
        """Steps whose models are evaluated, 0 for the untrained one."""
        return ((0,) if self.eval_untrained else ()) + self.checkpoint_steps

    def choices(self, flavor: EvalConfig) -> dict[int, tuple[int, ...]]:
        """Return the steps at which a flavor chooses on held-out classes, each with the checkpoints to choose from.

        One that chooses the checkpoint too does so once, at the end of training; one that chooses nothing, never.
        """
        if flavor.choose is None:
            return {}
        if flavor.choose.takes_checkpoint:
            return {self.checkpoint_steps[-1]: self.checkpoint_steps}
        return {step: (step,) for step in self.evaluated_steps}
