"""The arguments of every model, typed: a wrong one is a config error with its line, not a crash in a job."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from anml.config.binding import Arguments, Count, Many, NotNegative, OneOrMany, Rate, Record

# null: as many as the images' size asks for (models/blocks.py has the rule).
Blocks = Annotated[int, Field(ge=1, le=6)] | None


class AnmlArgs(Record):
    """ANML (Beaulieu et al. 2020): prediction network `rln`, neuromodulatory network `nm`, output layer `fc`.

    The published checkpoint's last blocks are unpooled; `pool_nm_output` is the later variant of the NM. What is null
    follows from the images' size, for 28x28 pixels as published.
    """

    rln_chs: Count = 256
    nm_chs: Count = 112
    num_blocks: Blocks = None
    pool_rln_output: bool | None = None
    pool_nm_output: bool | None = None
    num_classes: Count = 1000


class NonmlArgs(AnmlArgs):
    """NONML: ANML whose gate stands beside the features instead of multiplying them."""


class SanmlArgs(Record):
    """SANML: ANML without the neuromodulatory network."""

    rln_chs: Count = 256
    num_blocks: Blocks = None
    pool_rln_output: bool | None = None
    num_classes: Count = 1000


class OmlArgs(Record):
    """OML (Javed & White 2019): convolutions `rln` learned by the outer loop, two Linear layers `pn` by both."""

    num_filters: Count = 256
    strides: Annotated[Many[Count], Field(min_length=1)] = (2, 1, 2, 1, 2, 2)
    hidden: Count = 1024
    num_classes: Count = 1000


_STAGES = 4  # of a residual network

# Other names of the norms in configs of higherANML.
_NORMS = {
    **dict.fromkeys(("batch", "batchnorm"), "bn"),
    **dict.fromkeys(("group", "groupnorm"), "gn"),
    **dict.fromkeys(("instance", "instancenorm"), "in"),
    "none": None,
}


def _norm(value: Any) -> Any:
    return _NORMS.get(value, value) if isinstance(value, str) else value


Norm = Annotated[Literal["bn", "gn", "in"] | None, BeforeValidator(_norm)]


def _zero_for_null(value: Any) -> Any:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [0 if v is None else v for v in values]


# One value for all blocks, or one per block; null stands for none, as in configs of higherANML.
Pixels = Annotated[tuple[NotNegative, ...], BeforeValidator(_zero_for_null), Field(strict=False, min_length=1)]


class ConvnetArgs(Record):
    """Encoder `convnet`: blocks of convolution, norm, ReLU, max-pooling. A pool size of 0 means no pooling."""

    num_blocks: Count = 4
    num_filters: OneOrMany[Count] = (64,)
    kernel_size: OneOrMany[Count] = (3,)
    stride: OneOrMany[Count] = (1,)
    padding: Pixels = (1,)
    norm_type: OneOrMany[Norm] = ("in",)
    pool_size: Pixels = (2,)

    @field_validator("num_filters", "kernel_size", "stride", "padding", "norm_type", "pool_size")
    @classmethod
    def _check_length(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        blocks = info.data.get("num_blocks")
        if blocks and len(values) not in (1, blocks):
            message = f"must be one value, or one for each of the {blocks} blocks"
            raise ValueError(message)
        return values

    @property
    def has_batch_norm(self) -> bool:
        """Whether images of a batch depend on each other."""
        return "bn" in self.norm_type


class AnmlEncoderArgs(Record):
    """Encoder `anml-encoder`: ANML without its output layer."""

    rln_chs: Count = 256
    nm_chs: Count = 112
    num_blocks: Blocks = None
    pool_rln_output: bool | None = None
    pool_nm_output: bool | None = None

    @property
    def has_batch_norm(self) -> bool:
        """Whether images of a batch depend on each other."""
        return False


class _ResidualArgs(Record):
    """What all residual networks have."""

    norm_type: Norm = "bn"

    @property
    def has_batch_norm(self) -> bool:
        """Whether images of a batch depend on each other."""
        return self.norm_type == "bn"


class Resnet12Args(_ResidualArgs):
    """Encoder `resnet12`: the few-shot ResNet-12. Its wide form has channels 64, 160, 320, 640."""

    channels: Many[Count] = (64, 128, 256, 512)

    @field_validator("channels")
    @classmethod
    def _check_stages(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if len(values) != _STAGES:
            message = f"must be {_STAGES} values, one for each stage"
            raise ValueError(message)
        return values


class Resnet18Args(_ResidualArgs):
    """Encoder `resnet18`: `width` channels in the first stage, twice as many in each following one."""

    width: Count = 64
    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)


class Resnet34Args(Resnet18Args):
    """Encoder `resnet34`: the same with more blocks."""

    blocks: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)


class LinearHeadArgs(Record):
    """Head `linear-classifier`: one Linear layer, named `linear`."""

    num_classes: Count = 1000


class MlpHeadArgs(Record):
    """Head `mlp-classifier`: Linear layers with ReLU between them, named `mlp.0`, `mlp.2`, ..."""

    num_classes: Count = 1000
    hidden_layers: OneOrMany[Count] = (1024,)


# Names of the metrics in configs of higherANML.
_METRICS = {"cos": "cosine", "sqr": "distance"}
Metric = Annotated[
    Literal["cosine", "distance"],
    BeforeValidator(lambda value: _METRICS.get(value, value) if isinstance(value, str) else value),
]


class MetricHeadArgs(Record):
    """Head `metric-classifier`: how near the features are to each class's weight row, named `metric`.

    `temperature` multiplies the similarities; null is 10 for `cosine`, 1 for `distance`. `learn_temperature`: whether
    it is a parameter; null is true for `cosine` unless a temperature is given, else false (as in higherANML).
    """

    num_classes: Count = 1000
    metric: Metric = "cosine"
    temperature: Rate | None = None
    learn_temperature: bool | None = None

    @property
    def start_temperature(self) -> float:
        """The temperature that is used, or that learning starts from."""
        return self.temperature or {"cosine": 10.0, "distance": 1.0}[self.metric]

    @property
    def learns_temperature(self) -> bool:
        """Whether the temperature is a parameter."""
        if self.learn_temperature is None:
            return self.metric == "cosine" and self.temperature is None
        return self.learn_temperature


EncoderArgs: TypeAlias = ConvnetArgs | AnmlEncoderArgs | Resnet12Args | Resnet18Args
HeadArgs: TypeAlias = LinearHeadArgs | MlpHeadArgs | MetricHeadArgs

ENCODER_ARGS: Mapping[str, type[EncoderArgs]] = {
    "convnet": ConvnetArgs,
    "anml-encoder": AnmlEncoderArgs,
    "resnet12": Resnet12Args,
    "resnet18": Resnet18Args,
    "resnet34": Resnet34Args,
}
HEAD_ARGS: Mapping[str, type[HeadArgs]] = {
    "linear-classifier": LinearHeadArgs,
    "mlp-classifier": MlpHeadArgs,
    "metric-classifier": MetricHeadArgs,
}


class ClassifierArgs(Record):
    """Model `classifier`: any encoder followed by any head, as submodules `encoder` and `classifier`."""

    encoder: Literal["convnet", "anml-encoder", "resnet12", "resnet18", "resnet34"]
    encoder_args: Arguments = {}
    classifier: Literal["linear-classifier", "mlp-classifier", "metric-classifier"] = "linear-classifier"
    classifier_args: Arguments = {}

    def encoder_record(self) -> EncoderArgs:
        """Return the encoder's arguments as their own typed record."""
        return ENCODER_ARGS[self.encoder](**self.encoder_args)

    def head_record(self) -> HeadArgs:
        """Return the head's arguments as their own typed record."""
        return HEAD_ARGS[self.classifier](**self.classifier_args)

    @property
    def num_classes(self) -> int:
        """Number of output rows."""
        return self.head_record().num_classes

    @property
    def has_batch_norm(self) -> bool:
        """Whether images of a batch depend on each other."""
        return self.encoder_record().has_batch_norm

    @property
    def has_metric_head(self) -> bool:
        """Whether logits are similarities, which least squares cannot fit."""
        return self.classifier == "metric-classifier"


ModelArgs: TypeAlias = AnmlArgs | NonmlArgs | SanmlArgs | OmlArgs | ClassifierArgs
MODEL_ARGS: Mapping[str, type[ModelArgs]] = {
    "anml": AnmlArgs,
    "nonml": NonmlArgs,
    "sanml": SanmlArgs,
    "oml": OmlArgs,
    "classifier": ClassifierArgs,
}


def complete_args(record: ModelArgs) -> dict[str, Any]:
    """Return every argument of a model as plain data, defaults included, those of a classifier's parts too."""
    args = record.model_dump(mode="json")
    if isinstance(record, ClassifierArgs):
        args["encoder_args"] = record.encoder_record().model_dump(mode="json")
        args["classifier_args"] = record.head_record().model_dump(mode="json")
    return args
