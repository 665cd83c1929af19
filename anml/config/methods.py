"""Training methods: how each trains, what its steps are, and what reports call it."""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

from anml.config.binding import name_or_reference
from anml.plugins import find_part


class InnerOptimizer(NamedTuple):
    """What takes the steps of the inner loop, SGD, as every engine gets it.

    momentum: that of torch's SGD; the velocity is zero when an episode begins. learns_rates: each parameter has a rate,
    which begins at `lr`, and which the outer loop learns.
    """

    lr: float
    momentum: float = 0.0
    learns_rates: bool = False

    @property
    def is_plain(self) -> bool:
        return not (self.momentum or self.learns_rates)


class Method(NamedTuple):
    """A training method.

    updater: reference of the class that trains by it (`anml.train.loop.Updater`). words: `MODEL ... on DATA` in a
    report. is_episodic: a step is an episode; otherwise it is a batch, and `epochs` counts passes over the data.
    is_second_order: the outer gradient is differentiated through the inner loop, by the engine that a config names.
    keeps_fast_weights: the outer update starts from the weights that the inner loop ends with.
    moves_to_fast_weights: the outer update goes towards the weights that the inner loop ends with.
    head: the baseline (config/protocols.py) whose error on unseen examples of a few classes is minimised; no output
    layer is trained then.
    """

    updater: str
    words: str
    is_episodic: bool = True
    is_second_order: bool = False
    keeps_fast_weights: bool = False
    moves_to_fast_weights: bool = False
    head: str = ""

    @property
    def unit(self) -> str:
        """What checkpoints and training curves count."""
        return "episodes" if self.is_episodic else "steps"

    @property
    def has_inner_loop(self) -> bool:
        """Whether gradient steps at `inner_lr` are part of an update."""
        return self.is_episodic and not self.head


_EPISODES = "anml.train.loop:EpisodeUpdater"
_FEW_SHOT = "anml.train.few_shot:FewShotUpdater"
METHODS: Mapping[str, Method] = {
    "meta": Method(_EPISODES, "meta-trained", is_second_order=True),
    # FOMAML (Finn et al. 2017, section 5.2).
    "meta-first-order": Method(_EPISODES, "meta-trained (first order)"),
    "sequential_episodic": Method(_EPISODES, "trained in sequence, without meta-learning,", keeps_fast_weights=True),
    "reptile": Method(_EPISODES, "meta-trained (Reptile)", moves_to_fast_weights=True),
    "prototypes": Method(_FEW_SHOT, "meta-trained by class means (prototypes)", head="ncm"),
    "gemcl": Method(_FEW_SHOT, "meta-trained by Bayesian Gaussians (GeMCL)", head="gemcl"),
    "iid": Method("anml.train.iid:BatchUpdater", "trained on shuffled batches (i.i.d.)", is_episodic=False),
}

# The value of the key `train_method`.
MethodName = Annotated[str, name_or_reference(METHODS)]


def find_method(name: str) -> Method:
    """Return a training method by its name or reference; a user's class may set `is_episodic`. Raises ConfigError."""
    if name in METHODS:
        return METHODS[name]
    updater = find_part("training method", name, dict.fromkeys(METHODS, ""))
    return Method(name, f"trained by {name.rpartition(':')[2]}", getattr(updater, "is_episodic", True))
