"""Whole meta-updates on tensors that stay where they are: one CUDA (HIP) graph replays all of an update.

In the graph: the lobotomy, the conversion of the episode's images from uint8, the episode by an engine, clipping, Adam,
and writing loss and accuracy into a ring. Before a replay the host draws which examples and which new output rows, from
the same named generators as ever, and copies these few kilobytes. Nothing waits for the device: the ring is read when
the training logs. Everything but capture and replay is what runs on a CPU as well.
"""

from collections.abc import Callable, Sequence

import torch

from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode, draw_examples, query_start, support_index
from anml.meta.engine import EpisodeOutcome, RunEpisodes
from anml.meta.step import OuterStep, draw_rows
from anml.rng import torch_generator

# Updates before the capture: libraries choose their algorithms and allocate, which a capture may not do.
_WARM_UPS = 3


class StaticUpdate:
    """Updates of one training, or of several at once, one `OuterStep` for each.

    run: what gives the outcomes of the episodes of all. play: how `update` is to be repeated; on a GPU a `GraphPlayer`.
    `step` returns views into the ring, which holds the last `log_freq` updates.
    """

    def __init__(
        self,
        config: TrainConfig,
        outers: Sequence[OuterStep],
        run: RunEpisodes,
        data: ClassImages,
        play: Callable[[Callable[[], None]], None] = lambda update: update(),
    ) -> None:
        self.config, self.outers, self.run, self.data, self.play = config, outers, run, data, play
        self.device, self.dtype = data.images.device, outers[0].model.head.weight.dtype
        self.support = support_index(config).to(self.device)
        first = draw_examples(data, config, outers[0].seed, 0)
        self.examples = len(first.classes)
        self.new_rows = 1 if config.sample_method == "single" else config.batch_size * config.inner_steps
        # Classes and examples of every lane, the rows to re-draw, and the place in the ring: one copy for all.
        lanes = len(outers)
        self.numbers = self._zeros(lanes, 2 * self.examples + self.new_rows + 1, dtype=torch.int64)
        self.rows = self._zeros(lanes, self.new_rows, outers[0].model.head.in_features)
        self.ring = self._zeros(lanes, 2, config.log_freq)

    def step(self, index: int) -> list[EpisodeOutcome]:
        """Update every lane with its episode `index`; the outcomes are without gradients."""
        self.fill(index)
        self.play(self.update)
        place = index % self.config.log_freq
        return [EpisodeOutcome(ring[0, place], ring[1, place], {}) for ring in self.ring]

    def fill(self, index: int) -> None:
        """Draw episode `index` of every lane into the buffers that `update` reads, and set its outer rate."""
        numbers, rows = torch.empty(self.numbers.shape, dtype=torch.int64), torch.empty(self.rows.shape)
        for lane, outer in enumerate(self.outers):
            outer.set_rate(index)
            draw = draw_examples(self.data, self.config, outer.seed, index)
            # Fewer new classes than rows: the last one again, with the same row.
            classes = [*draw.new_classes, *[draw.new_classes[-1]] * (self.new_rows - len(draw.new_classes))]
            place = torch.tensor([*classes, index % self.config.log_freq])
            torch.cat([draw.classes, draw.examples, place], out=numbers[lane])
            if self.config.lobotomize:
                generator = torch_generator(outer.seed, "lobotomy", index)
                drawn = draw_rows(outer.model.head, draw.new_classes, generator)
                rows[lane] = drawn[-1]
                rows[lane, : len(drawn)] = drawn
        self._copy(numbers, self.numbers)
        self._copy(rows, self.rows)

    def update(self) -> None:
        """Do one update with what the buffers hold. No shape, and nothing the host does, depends on their values."""
        classes, examples, new, place = self.numbers.split([self.examples, self.examples, self.new_rows, 1], dim=1)
        if self.config.lobotomize:
            with torch.no_grad():
                for outer, where, rows in zip(self.outers, new, self.rows, strict=True):
                    outer.model.head.weight.index_copy_(0, where, rows)
        images = self.data.floats(self.data.images[classes, examples], self.dtype)
        start = query_start(self.config)
        episodes = [Episode(x, y, self.support, start, ()) for x, y in zip(images, classes, strict=True)]
        outcomes = self.run(episodes)
        for outer, outcome in zip(self.outers, outcomes, strict=True):
            outer.finish(outcome.gradients)
        values = torch.stack([torch.stack([outcome.loss, outcome.accuracy]) for outcome in outcomes])
        self.ring.index_copy_(2, place[0], values.to(self.dtype)[:, :, None])

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def _copy(self, values: torch.Tensor, buffer: torch.Tensor) -> None:
        # Pinned memory is not used again before the copy is done; a copy from other memory would be waited for.
        values = values.pin_memory() if self.device.type == "cuda" else values
        buffer.copy_(values, non_blocking=True)


class GraphPlayer:
    """Repeats an update by replaying one CUDA graph of it. `note` says why not, where it cannot be captured."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        self.played, self.note = 0, ""

    def __call__(self, update: Callable[[], None]) -> None:
        """Do one update: the first few as they come, those after them by replaying."""
        if self.played == 0:
            count_on_device(self.optimizers)
        if self.played == _WARM_UPS:
            self._capture(update)
        if self.played < _WARM_UPS:
            self._warm_up(update)
        elif self.note:
            update()
        else:
            self.graph.replay()
        self.played += 1

    def _warm_up(self, update: Callable[[], None]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            update()
        torch.cuda.current_stream().wait_stream(self.stream)

    def _capture(self, update: Callable[[], None]) -> None:
        """Capture the update, which does not run it."""
        try:
            with torch.cuda.graph(self.graph):
                update()
        except RuntimeError as error:
            self.note = f"the update cannot be captured as one graph, and runs without: {error}".splitlines()[0]


def count_on_device(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let Adam count its steps on the device. A checkpoint of another engine says otherwise, so: after loading one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["capturable"] = True
