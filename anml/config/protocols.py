"""The evaluation protocols, as far as configs and reports must know them: how a model learns new classes and is scored.

A new protocol is an entry here and a function (anml/evaluate/protocols.py says what it receives and yields) or, where
no gradient is needed, a head (anml/evaluate/baselines.py). Or an `EvalProtocol` in a user's own file: `./knn.py:KNN`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticKnownError

from anml.errors import ConfigError
from anml.plugins import is_reference, load_object


@dataclass(frozen=True)
class EvalProtocol:
    """A protocol's function, and the properties that decide which config keys it reads.

    function: the function, or a reference to it (MODULE:NAME), which costs no import until a job uses it.
    learns: a learner takes steps, at each learning rate of `lr`; otherwise a run is one trajectory without a rate.
    is_shuffled: the learner takes batches of all classes, mixed (`epochs`, `batch_size`; `eval_freq` counts steps),
    so that reports show it beside its sequential counterpart; otherwise it takes example after example.
    solves_head: least squares set the output layer, whatever `reinit_method` says.
    replays: a batch has the new example and earlier ones (`batch_size`, `replay_size`).
    baseline: the class (anml/evaluate/baselines.py), or a reference to it, of a head that learns in place of the output
    layer, one example at a time and without a gradient. options: the keys it reads that only some protocols read.
    """

    function: str | Callable[..., Any]
    learns: bool = True
    is_shuffled: bool = False
    solves_head: bool = False
    replays: bool = False
    baseline: str | type | None = None
    options: tuple[str, ...] = ()

    @property
    def in_sequence(self) -> bool:
        """Whether a learner takes one example at a time, class after class."""
        return bool(self.learns or self.baseline) and not self.is_shuffled

    @property
    def takes_batches(self) -> bool:
        """Whether a step learns from `batch_size` examples."""
        return self.is_shuffled or self.replays

    def load(self) -> Callable[..., Any]:
        return load_object(self.function) if isinstance(self.function, str) else self.function

    def load_baseline(self) -> Any:
        return load_object(self.baseline) if isinstance(self.baseline, str) else self.baseline


def _baseline(name: str, *options: str) -> EvalProtocol:
    function, head = "anml.evaluate.protocols:learn_in_sequence", f"anml.evaluate.baselines:{name}"
    return EvalProtocol(function, learns=False, baseline=head, options=options)


PROTOCOLS = {
    "sequential": EvalProtocol("anml.evaluate.protocols:learn_in_sequence"),
    "iid": EvalProtocol("anml.evaluate.protocols:learn_shuffled", is_shuffled=True),
    "zero_shot": EvalProtocol("anml.evaluate.protocols:score_unlearned", learns=False, solves_head=True),
    "replay": EvalProtocol("anml.evaluate.protocols:learn_with_replay", replays=True, options=("replay_size",)),
    "ncm": _baseline("NearestMean", "metric"),
    "slda": _baseline("StreamingLda", "shrinkage"),
    "gemcl": _baseline("BayesianGaussian", "posterior", "prior_alpha", "prior_beta"),
    # Ridge regression, learned in sequence.
    "rls": _baseline("RecursiveLeastSquares", "l2"),
    "knn": _baseline("NearestNeighbours", "metric", "neighbours"),
    "logistic": _baseline("Logistic", "l2"),
}


def find_protocol(name: str) -> EvalProtocol:
    """Return the protocol that `eval_method` names or refers to. Raises ConfigError."""
    protocol = PROTOCOLS.get(name) or load_object(name)
    if not isinstance(protocol, EvalProtocol):
        file, variable = name.rsplit(":", 1)
        message = f"{file}: {variable} is no EvalProtocol; write {variable} = EvalProtocol(FUNCTION) there"
        raise ConfigError(message)
    return protocol


def _check_name(name: str) -> str:
    if name not in PROTOCOLS and not is_reference(name):
        error = PydanticKnownError("literal_error", {"expected": ", ".join(PROTOCOLS)})
        raise error
    try:
        find_protocol(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return name


# The name of a protocol, or FILE.py:NAME or MODULE:NAME of a user's own.
EvalMethod = Annotated[str, AfterValidator(_check_name)]
