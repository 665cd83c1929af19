"""Several trainings of one configuration at once: lanes, a leading dimension on every weight and every image.

Each lane is exactly a training of its own: its inner learning rate, its episodes, its lobotomies, its Adam. Together
they make few large operations of many small ones, which is what a GPU wants.
"""

import copy
from collections.abc import Sequence

from anml.data.episodes import Episode
from anml.meta.engine import IN_FLOAT64, CheckedEpisodes, EpisodeOutcome, RunEpisodes, gradient_errors, mistake
from anml.meta.fast import FastEngine
from anml.meta.functional_episode import FunctionalEpisode, missing_compiler, run_lanes, unsupported
from anml.meta.plain_layers import not_for_lanes
from anml.models.meta_model import MetaModel

# Three steps have all that twenty have, and in float64 take less memory than those twenty in float32.
_STEPS_CHECKED = 3


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
        self.models, self.inner_names, self.inner_lrs = models, inner_names, inner_lrs
        missing = missing_compiler(next(models[0].parameters()).device) if compiled else ""
        compiled = compiled and not missing
        note = f"not compiled: {missing}" if missing else ""
        # Compiled for float64 they would be another program, and take as long to compile again.
        self.checked = CheckedEpisodes(
            *self._ways(models, compiled), note, None if compiled else self._mistake_in_float64
        )

    @property
    def note(self) -> str:
        """What became of compiling or of the lanes, where it did not go well."""
        return self.checked.note

    def run(self, episodes: Sequence[Episode]) -> list[EpisodeOutcome]:
        """Return the outcome of every model's own episode."""
        return self.checked.run(episodes)

    def _ways(self, models: Sequence[MetaModel], compiled: bool = False) -> tuple[RunEpisodes, RunEpisodes]:
        """Return how to run episodes of these models in lanes, and one after the other."""
        on_gpu = next(models[0].parameters()).device.type == "cuda"
        program = FunctionalEpisode(
            models[0], self.inner_names, tuple(self.inner_lrs), lanes=True, compiled=compiled, matrices=on_gpu
        )
        engines = [FastEngine(m, self.inner_names, rate) for m, rate in zip(models, self.inner_lrs, strict=True)]
        return (
            lambda episodes: run_lanes(program, models, episodes),
            lambda episodes: [engine.run(episode) for engine, episode in zip(engines, episodes, strict=True)],
        )

    def _mistake_in_float64(self, episodes: Sequence[Episode]) -> str:
        """Say which gradient lanes get wrong in short episodes of copies in float64, or return an empty string."""
        lanes, alone = self._ways([copy.deepcopy(model).double() for model in self.models])
        short = [
            episode._replace(images=episode.images.double(), support_index=episode.support_index[:_STEPS_CHECKED])
            for episode in episodes
        ]
        return mistake(gradient_errors(lanes(short), alone(short)), IN_FLOAT64)


def unsupported_lanes(model: MetaModel) -> str:
    """Say why a model cannot be trained in lanes, or return an empty string when it can."""
    return unsupported(model) or not_for_lanes(model)
