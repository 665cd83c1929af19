"""The base of every config record, and field types that YAML users expect."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

T = TypeVar("T")


class Record(BaseModel):
    """A frozen record. An unknown key or a value of another type is an error, never a guess."""

    # Built when first used: a command line needs few of the records that it imports.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


# A single value or a list of them, always held as a tuple.
OneOrMany = Annotated[tuple[T, ...], BeforeValidator(_as_list), Field(strict=False, min_length=1)]
Many = Annotated[tuple[T, ...], Field(strict=False)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
# Arguments that another record (or torch) will check; a key without a value stands for none.
Arguments = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
