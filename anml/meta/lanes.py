"""Several trainings of one configuration at once: lanes, a leading dimension on every weight and every image.

Each lane is exactly a training of its own: its inner learning rate, its episodes, its lobotomies, its Adam. Together
they make few large operations of many small ones, which is what a GPU wants.
"""

from collections.abc import Sequence

from anml.data.episodes import Episode
from anml.meta.engine import CheckedEpisodes, EpisodeOutcome
from anml.meta.fast import FastEngine
from anml.meta.functional_episode import FunctionalEpisode, missing_compiler, run_lanes, unsupported
from anml.meta.plain_layers import not_for_lanes
from anml.models.meta_model import MetaModel


class LanesEngine:
    """Runs an episode for each of several models of the same shape."""

    name = "lanes"

    def __init__(
        self, models: Sequence[MetaModel], inner_names: list[str], inner_lrs: Sequence[float], compiled: bool = False
    ) -> None:
        reason = unsupported_lanes(models[0])
        if reason:
            message = f"several trainings cannot be done together: {reason}"
            raise ValueError(message)
        device = next(models[0].parameters()).device
        missing = missing_compiler(device) if compiled else ""
        program = FunctionalEpisode(
            models[0], inner_names, tuple(inner_lrs), True, compiled and not missing, matrices=device.type == "cuda"
        )
        engines = [FastEngine(model, inner_names, rate) for model, rate in zip(models, inner_lrs, strict=True)]
        self.checked = CheckedEpisodes(
            lambda episodes: run_lanes(program, models, episodes),
            lambda episodes: [engine.run(episode) for engine, episode in zip(engines, episodes, strict=True)],
            f"not compiled: {missing}" if missing else "",
        )

    @property
    def note(self) -> str:
        """What became of compiling or of the lanes, where it did not go well."""
        return self.checked.note

    def run(self, episodes: Sequence[Episode]) -> list[EpisodeOutcome]:
        """Return the outcome of every model's own episode."""
        return self.checked.run(episodes)


def unsupported_lanes(model: MetaModel) -> str:
    """Say why a model cannot be trained in lanes, or return an empty string when it can."""
    return unsupported(model) or not_for_lanes(model)
