"""The arguments of every model, typed: a wrong one is a config error with its line, not a crash in a job."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from anml.config.record import Arguments, Count, Many, NotNegative, OneOrMany, Record


class AnmlArgs(Record):
    """ANML (Beaulieu et al. 2020): prediction network `rln`, neuromodulatory network `nm`, output layer `fc`.

    The published checkpoint's last blocks are unpooled; `pool_nm_output` is the later variant of the NM.
    """

    rln_chs: Count = 256
    nm_chs: Count = 112
    num_blocks: Annotated[int, Field(ge=1, le=6)] = 3
    pool_rln_output: bool = False
    pool_nm_output: bool = False
    num_classes: Count = 1000


class SanmlArgs(Record):
    """SANML: ANML without the neuromodulatory network."""

    rln_chs: Count = 256
    num_blocks: Annotated[int, Field(ge=1, le=6)] = 3
    pool_rln_output: bool = False
    num_classes: Count = 1000


class OmlArgs(Record):
    """OML (Javed & White 2019): convolutions `rln` learned by the outer loop, two Linear layers `pn` by both."""

    num_filters: Count = 256
    strides: Annotated[Many[Count], Field(min_length=1)] = (2, 1, 2, 1, 2, 2)
    hidden: Count = 1024
    num_classes: Count = 1000


# Other names of the norms in configs of higherANML.
_NORMS = {
    **dict.fromkeys(("batch", "batchnorm"), "bn"),
    **dict.fromkeys(("group", "groupnorm"), "gn"),
    **dict.fromkeys(("instance", "instancenorm"), "in"),
    "none": None,
}


def _norm(value: Any) -> Any:
    return _NORMS.get(value, value) if isinstance(value, str) else value


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
    norm_type: Annotated[Literal["bn", "gn", "in"] | None, BeforeValidator(_norm)] = "in"
    pool_size: Pixels = (2,)

    @field_validator("num_filters", "kernel_size", "stride", "padding", "pool_size")
    @classmethod
    def _check_length(cls, values: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        blocks = info.data.get("num_blocks")
        if blocks and len(values) not in (1, blocks):
            message = f"must be one value, or one for each of the {blocks} blocks"
            raise ValueError(message)
        return values


class AnmlEncoderArgs(Record):
    """Encoder `anml-encoder`: ANML without its output layer."""

    rln_chs: Count = 256
    nm_chs: Count = 112
    num_blocks: Annotated[int, Field(ge=1, le=6)] = 3
    pool_rln_output: bool = False
    pool_nm_output: bool = False


class LinearHeadArgs(Record):
    """Head `linear-classifier`: one Linear layer, named `linear`."""

    num_classes: Count = 1000


class MlpHeadArgs(Record):
    """Head `mlp-classifier`: Linear layers with ReLU between them, named `mlp.0`, `mlp.2`, ..."""

    num_classes: Count = 1000
    hidden_layers: OneOrMany[Count] = (1024,)


ENCODER_ARGS: Mapping[str, type[Record]] = {"convnet": ConvnetArgs, "anml-encoder": AnmlEncoderArgs}
HEAD_ARGS: Mapping[str, type[Record]] = {"linear-classifier": LinearHeadArgs, "mlp-classifier": MlpHeadArgs}

EncoderArgs: TypeAlias = ConvnetArgs | AnmlEncoderArgs
HeadArgs: TypeAlias = LinearHeadArgs | MlpHeadArgs


class ClassifierArgs(Record):
    """Model `classifier`: any encoder followed by any head, as submodules `encoder` and `classifier`."""

    encoder: Literal["convnet", "anml-encoder"]
    encoder_args: Arguments = {}
    classifier: Literal["linear-classifier", "mlp-classifier"] = "linear-classifier"
    classifier_args: Arguments = {}

    def encoder_record(self) -> EncoderArgs:
        """Return the encoder's arguments as their own typed record."""
        return ENCODER_ARGS[self.encoder](**self.encoder_args)  # type: ignore[return-value]

    def head_record(self) -> HeadArgs:
        """Return the head's arguments as their own typed record."""
        return HEAD_ARGS[self.classifier](**self.classifier_args)  # type: ignore[return-value]

    @property
    def num_classes(self) -> int:
        """Number of output rows."""
        return self.head_record().num_classes


MODEL_ARGS: Mapping[str, type[Record]] = {
    "anml": AnmlArgs,
    "sanml": SanmlArgs,
    "oml": OmlArgs,
    "classifier": ClassifierArgs,
}
ModelArgs: TypeAlias = AnmlArgs | SanmlArgs | OmlArgs | ClassifierArgs
