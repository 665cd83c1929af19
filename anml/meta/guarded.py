"""A quick way of running episodes that the plain way vouches for: compilers and transforms err, and say nothing."""

from collections.abc import Callable, Sequence

from anml.data.episodes import Episode
from anml.meta.engine import EpisodeOutcome, disagreement

RunEpisodes = Callable[[Sequence[Episode]], list[EpisodeOutcome]]


class Guarded:
    """Runs the first episodes both ways. Where the quick way fails or disagrees, the plain way goes on, and `note` says
    so: PyTorch has given wrong second derivatives for models it could compile or batch (plain_layers.py).
    """  # noqa: D205

    def __init__(self, quick: RunEpisodes | None, plain: RunEpisodes, note: str = "") -> None:
        """Take the quick way, or None with a note that says why there is none."""
        self.quick, self.plain, self.note = quick, plain, note
        self.is_checked = False

    def run(self, episodes: Sequence[Episode]) -> list[EpisodeOutcome]:
        """Return the outcomes of episodes, one for each model."""
        if self.quick is None:
            return self.plain(episodes)
        return self.quick(episodes) if self.is_checked else self._first(self.quick, episodes)

    def _first(self, quick: RunEpisodes, episodes: Sequence[Episode]) -> list[EpisodeOutcome]:
        expected = self.plain(episodes)
        try:
            found = quick(episodes)
            problem = disagreement(found, expected)
        except Exception as error:  # Whatever a compiler throws: the plain way can do without it.
            found, problem = expected, f"{type(error).__name__}: {_first_line(str(error))}"
        self.is_checked = True
        if not problem:
            return found
        self.quick, self.note = None, f"fell back to the fast engine: {problem}"
        return expected


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")
