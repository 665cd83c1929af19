"""Models, encoders and heads by name: the arguments of each, typed, and the class or function that builds it.

A wrong argument is a config error with its line, not a crash in a job. In place of a name, a config may refer to the
user's own code (plugins.py), whose arguments are those of its signature.
"""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias, get_origin

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticKnownError

from anml.config.binding import Arguments, Count, Many, NotNegative, OneOrMany, Rate, Record, as_list, bind, problem
from anml.config.yaml import KeyPath, Source
from anml.errors import ConfigError
from anml.plugins import find_part, is_reference, load_object

# null: as many as the images' size asks for (models/blocks.py has the rule).
Blocks = Annotated[int, Field(ge=1, le=6)] | None


class AnmlEncoderArgs(Record):
    """Encoder `anml-encoder`: prediction network `rln`, gated by the neuromodulatory network `nm`.

    The published checkpoint's last blocks are unpooled; `pool_nm_output` is the later variant of the NM. What is null
    follows from the images' size, for 28x28 pixels as published.
    """

    rln_chs: Count = 256
    nm_chs: Count = 112
    num_blocks: Blocks = None
    pool_rln_output: bool | None = None
    pool_nm_output: bool | None = None


class AnmlArgs(AnmlEncoderArgs):
    """ANML and NONML: `anml-encoder` and an output layer `fc`."""

    num_classes: Count = 1000


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


def _renamed(names: Mapping[str, str | None]) -> BeforeValidator:
    return BeforeValidator(lambda value: names.get(value, value) if isinstance(value, str) else value)


_NORMS = {
    **dict.fromkeys(("batch", "batchnorm"), "bn"),
    **dict.fromkeys(("group", "groupnorm"), "gn"),
    **dict.fromkeys(("instance", "instancenorm"), "in"),
    "none": None,
}
Norm = Annotated[Literal["bn", "gn", "in"] | None, _renamed(_NORMS)]


def _zero_for_null(value: Any) -> list[Any]:
    return [0 if v is None else v for v in as_list(value)]


# One value for all blocks, or one per block; null stands for none, as in configs of higherANML.
Pixels = Annotated[tuple[NotNegative, ...], BeforeValidator(_zero_for_null), Field(strict=False, min_length=1)]


class ConvnetArgs(Record):
    """Encoder `convnet`: blocks of convolutions with norm and ReLU, and max-pooling; a pool size of 0 means none."""

    num_blocks: Count = 4
    num_conv_per_block: OneOrMany[Count] = (1,)
    num_filters: OneOrMany[Count] = (64,)
    kernel_size: OneOrMany[Count] = (3,)
    stride: OneOrMany[Count] = (1,)
    padding: Pixels = (1,)
    norm_type: OneOrMany[Norm] = ("in",)
    pool_size: Pixels = (2,)

    @pydantic.field_validator(
        "num_conv_per_block", "num_filters", "kernel_size", "stride", "padding", "norm_type", "pool_size"
    )
    @classmethod
    def _check_length(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        blocks = info.data.get("num_blocks")
        if blocks and len(values) not in (1, blocks):
            message = f"must be one value, or one for each of the {blocks} blocks"
            raise ValueError(message)
        return values


class Resnet12Args(Record):
    """Encoder `resnet12`: the few-shot ResNet-12. Its wide form has channels 64, 160, 320, 640."""

    norm_type: Norm = "bn"
    channels: Annotated[Many[Count], Field(min_length=4, max_length=4)] = (64, 128, 256, 512)


class Resnet18Args(Record):
    """Encoder `resnet18`: `width` channels in the first stage, twice as many in each following one."""

    norm_type: Norm = "bn"
    width: Count = 64
    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)
    # Of a bottleneck of torchvision; no base_width: a basic block of two convolutions.
    groups: ClassVar[int] = 1
    base_width: ClassVar[int] = 0


class Resnet12WideArgs(Resnet12Args):
    """Encoder `resnet12-wide`."""

    channels: Annotated[Many[Count], Field(min_length=4, max_length=4)] = (64, 160, 320, 640)


class Vgg16Args(Record):
    """Encoders `vgg16_encoder` and `vgg16_bn_encoder`. `dropout` is of layers that they do not have."""

    norm_type: ClassVar[Norm] = None
    dropout: float | None = None


class Vgg16BnArgs(Vgg16Args):
    norm_type: ClassVar[Norm] = "bn"


class LinearHeadArgs(Record):
    """Head `linear-classifier`: one Linear layer, named `linear`."""

    num_classes: Count = 1000


class MlpHeadArgs(Record):
    """Head `mlp-classifier`: Linear layers with ReLU between them, named `mlp.0`, `mlp.2`, ...; null: no hidden one."""

    num_classes: Count = 1000
    hidden_layers: Annotated[Many[Count], BeforeValidator(lambda v: [] if v is None else as_list(v))] = (1024,)


class MetricHeadArgs(Record):
    """Head `metric-classifier`: how near the features are to each class's weight row, named `metric`.

    `temperature` multiplies the similarities; null is 10 for `cosine`, else 1. `learn_temperature`: whether
    it is a parameter; null is true for `cosine` unless a temperature is given, else false (as in higherANML).
    """

    num_classes: Count = 1000
    metric: Annotated[Literal["cosine", "distance", "dot"], _renamed({"cos": "cosine", "sqr": "distance"})] = "cosine"
    temperature: Rate | None = None
    learn_temperature: bool | None = None


# How weights are drawn before training (models/meta_model.py).
Initialisation = Literal["uniform", "kaiming", "fan_out"]


class Part(NamedTuple):
    """A model, an encoder or a head: the record of its arguments, and a reference of what builds it.

    initialisation: what its authors do.
    """

    args: Any  # A type of Record, or of a user's own pydantic record.
    reference: str
    initialisation: Initialisation = "uniform"

    def build(self, args: BaseModel, **given: Any) -> Any:
        """Build the part of its arguments and of what is `given`, such as image_shape. Raises ConfigError."""
        build = load_object(self.reference)
        arguments = {"args": args} if "args" in signature(build).parameters else dict(args)
        try:
            return build(**arguments, **given)
        except Exception as error:
            if isinstance(error, ConfigError) or self.reference.startswith("anml."):
                raise
            message = f"{self.reference}: building it failed: {type(error).__name__}: {error}"
            raise ConfigError(message) from error  # Whatever a user's code raises is the user's to mend.


def _resnet(blocks: tuple[int, ...], base_width: int = 0, groups: int = 1) -> Part:
    """Return a residual network of so many blocks in each stage."""
    fixed = {"blocks": blocks, "base_width": base_width, "groups": groups, "__module__": __name__}
    return Part(type("ResnetArgs", (Resnet18Args,), fixed), "anml.models.encoders:resnet18", "fan_out")


ENCODERS = {
    "convnet": Part(ConvnetArgs, "anml.models.encoders:convnet"),
    "anml-encoder": Part(AnmlEncoderArgs, "anml.models.anml:AnmlEncoder"),
    "resnet12": Part(Resnet12Args, "anml.models.encoders:resnet12", "fan_out"),
    "resnet12-wide": Part(Resnet12WideArgs, "anml.models.encoders:resnet12", "fan_out"),
    "resnet18": Part(Resnet18Args, "anml.models.encoders:resnet18", "fan_out"),
    "resnet34": _resnet((3, 4, 6, 3)),
    "resnet50": _resnet((3, 4, 6, 3), 64),
    "resnet101": _resnet((3, 4, 23, 3), 64),
    "resnet152": _resnet((3, 8, 36, 3), 64),
    "resnext50_32x4d": _resnet((3, 4, 6, 3), 4, 32),
    "resnext101_32x8d": _resnet((3, 4, 23, 3), 8, 32),
    "wide_resnet50_2": _resnet((3, 4, 6, 3), 128),
    "wide_resnet101_2": _resnet((3, 4, 23, 3), 128),
    "vgg16_encoder": Part(Vgg16Args, "anml.models.encoders:vgg16", "fan_out"),
    "vgg16_bn_encoder": Part(Vgg16BnArgs, "anml.models.encoders:vgg16", "fan_out"),
}
HEADS = {
    "linear-classifier": Part(LinearHeadArgs, "anml.models.heads:linear_head"),
    "mlp-classifier": Part(MlpHeadArgs, "anml.models.heads:mlp_head"),
    "metric-classifier": Part(MetricHeadArgs, "anml.models.heads:metric_head"),
}


def _name_of(kind: str) -> BeforeValidator:
    """Return a validator of names of parts. It words an unknown one as pydantic words a wrong Literal."""

    def check(name: Any) -> Any:
        if _is_name(kind, name):
            return name
        expected = {"expected": ", ".join((*PARTS[kind], "FILE.py:NAME"))}
        raise PydanticKnownError("literal_error", expected)  # noqa: EM101

    return BeforeValidator(check)


class ClassifierArgs(Record):
    """Model `classifier`: any encoder followed by any head, as submodules `encoder` and `classifier`."""

    encoder: Annotated[str, _name_of("encoder")]
    encoder_args: Arguments = {}
    classifier: Annotated[str, _name_of("classifier")] = "linear-classifier"
    classifier_args: Arguments = {}

    def encoder_record(self) -> Any:
        return named_part("encoder", self.encoder).args(**self.encoder_args)

    def head_record(self) -> Any:
        return named_part("classifier", self.classifier).args(**self.classifier_args)

    @property
    def num_classes(self) -> int:
        return self.head_record().num_classes

    @property
    def has_batch_norm(self) -> bool:
        """Whether images of a batch depend on each other, as far as the encoder's arguments tell."""
        return "bn" in (getattr(self.encoder_record(), "norm_type", None) or ())

    @property
    def has_metric_head(self) -> bool:
        """Whether logits are similarities, which least squares cannot fit."""
        return self.classifier == "metric-classifier"


# Of a user's own model too: `num_classes`.
ModelArgs: TypeAlias = AnmlArgs | SanmlArgs | OmlArgs | ClassifierArgs
ModelName = Annotated[str, _name_of("model")]

MODELS = {
    "anml": Part(AnmlArgs, "anml.models.anml:Anml"),
    "nonml": Part(AnmlArgs, "anml.models.anml:Nonml"),
    "sanml": Part(SanmlArgs, "anml.models.anml:Sanml"),
    "oml": Part(OmlArgs, "anml.models.anml:Oml", "kaiming"),
    "classifier": Part(ClassifierArgs, "anml.models.encoders:Classifier"),
}
# By the key of a config that names one.
PARTS: Mapping[str, Mapping[str, Part]] = {"model": MODELS, "encoder": ENCODERS, "classifier": HEADS}
_GIVEN = {"model": "image_shape", "encoder": "image_shape", "classifier": "features"}


def _is_name(kind: str, name: Any) -> bool:
    return isinstance(name, str) and (name in PARTS[kind] or is_reference(name))


def named_part(kind: str, name: str) -> Part:
    """Return the part that a config names. kind: a key of PARTS. Raises ConfigError."""
    if name in PARTS[kind]:
        return PARTS[kind][name]
    build = find_part(kind, name, dict.fromkeys(PARTS[kind], ""))
    try:
        parameters = dict(signature(build, eval_str=True).parameters)
        given = parameters.pop(_GIVEN[kind], None)
        record = _record_of(name, parameters)
        record.model_rebuild()
    except (TypeError, ValueError, NameError, pydantic.PydanticUserError) as error:
        message = f"{name}: its arguments cannot be read: {error}"
        raise ConfigError(message) from None
    missing = [] if given else [f"{_GIVEN[kind]}, which every {kind} is given"]
    if kind != "encoder" and "num_classes" not in record.model_fields:
        missing.append("num_classes, the number of outputs")
    if missing:
        message = f"{name}: has no argument {', and no '.join(missing)}"
        raise ConfigError(message)
    return Part(record, name)


def _record_of(name: str, parameters: Mapping[str, Parameter]) -> type[BaseModel]:
    """Return the record of a user's arguments: the annotation of `args`, or a new one made of the signature."""
    if "args" in parameters:
        record = parameters["args"].annotation
        if not (isinstance(record, type) and issubclass(record, BaseModel)):
            message = f"{name}: its argument args needs the annotation of a pydantic record"
            raise ConfigError(message)
        strict = ConfigDict(extra=record.model_config.get("extra", "forbid"))
        return type(record.__name__, (record,), {"model_config": strict, "__module__": record.__module__})
    named = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    fields: dict[str, Any] = {p.name: (_field_type(p), ... if p.default is p.empty else p.default) for p in named}
    return pydantic.create_model(name.rpartition(":")[2], __base__=Record, **fields)


def _field_type(parameter: Parameter) -> Any:
    kind = Any if parameter.annotation is parameter.empty else parameter.annotation
    # YAML has lists where Python has tuples.
    return Annotated[kind, Field(strict=False)] if get_origin(kind) is tuple else kind


def model_references(model: str, args: Any) -> list[str]:
    """Return the references to a user's own code among the names of a model and its parts. args: unchecked."""
    names = [model, *(args.get(kind) for kind in ("encoder", "classifier") if isinstance(args, Mapping))]
    return [name for name in names if isinstance(name, str) and is_reference(name)]


def check_model_args(source: Source) -> list[str]:
    """Return what is wrong with the arguments of the model and its parts, with the lines of the file."""
    model, args = source.data.get("model"), source.data.get("model_args")
    if not isinstance(args, dict | None):
        return []
    problems = _problems_of("model", model, source, ())
    if model == "classifier" and args:
        problems += _problems_of("encoder", args.get("encoder"), source, ("model_args",))
        head = args.get("classifier", "linear-classifier")
        problems += _problems_of("classifier", head, source, ("model_args",))
    return problems


def _problems_of(kind: str, name: Any, source: Source, inside: KeyPath) -> list[str]:
    try:
        return bind(named_part(kind, name).args, source, (*inside, f"{kind}_args"))[1] if _is_name(kind, name) else []
    except ConfigError as error:
        return [problem(source, (*inside, kind), str(error))]


def complete_args(record: BaseModel) -> dict[str, Any]:
    """Return every argument of a model as plain data, defaults included, those of a classifier's parts too."""
    args = record.model_dump(mode="json")
    if isinstance(record, ClassifierArgs):
        args["encoder_args"] = record.encoder_record().model_dump(mode="json")
        args["classifier_args"] = record.head_record().model_dump(mode="json")
    return args
