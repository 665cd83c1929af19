"""Whole meta-updates on tensors that stay in their memory, so that one CUDA (HIP) graph can replay them.

The graph holds the lobotomy, the conversion of the episode's images from uint8, the episode by an engine, clipping,
Adam, and the writing of loss and accuracy into a ring. Before a replay the host draws which examples and which new
output rows the update uses, from the same named generators as ever, and copies these few kilobytes. Nothing waits for
the device: the training reads the ring when it logs. A CPU can run everything but capture and replay.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode, draw_examples, query_start, support_index
from anml.machine import clock
from anml.meta.engine import EpisodeOutcome
from anml.meta.outer_step import OuterStep, draw_rows
from anml.rng import torch_generator

# Updates before the capture: libraries choose their algorithms and allocate, which a capture may not do.
_WARM_UPS = 3
# Updates by which a number of branches is timed, what a larger one must take of their time, and the share of the free
# memory that branches may fill.
_TRIAL, _GAIN, _SHARE = 4, 0.95, 0.8


class StaticUpdate:
    """The updates of one training.

    run: returns the outcome of an episode. The ring holds the outcomes of the last `log_freq` updates.
    """

    def __init__(
        self, config: TrainConfig, outer: OuterStep, run: Callable[[Episode], EpisodeOutcome], data: ClassImages
    ) -> None:
        self.config, self.outer, self.run, self.data = config, outer, run, data
        head, device = outer.model.head, data.images.device
        self.device, self.dtype = device, head.weight.dtype
        self.support = support_index(config).to(device)
        self.num_examples = len(draw_examples(data, config, outer.seed, 0).classes)
        rows = {"single": 1, "sequential": config.tasks or 1}
        self.num_rows = rows.get(config.sample_method, config.batch_size * config.inner_steps)
        # Classes and examples of the episode, the rows to re-draw, and the position in the ring: one copy for all.
        self.numbers = torch.zeros(2 * self.num_examples + self.num_rows + 1, dtype=torch.int64, device=device)
        self.rows = torch.zeros(self.num_rows, head.in_features, dtype=self.dtype, device=device)
        self.ring = torch.zeros(2, config.log_freq, dtype=self.dtype, device=device)

    def fill(self, index: int) -> None:
        """Draw episode `index` into the buffers that `update` reads, and set its outer learning rate."""
        self.outer.set_lr(index)
        draw = draw_examples(self.data, self.config, self.outer.seed, index)
        # Where there are fewer new classes than rows, the last class is written again, with the same row.
        classes = [*draw.new_classes, *[draw.new_classes[-1]] * (self.num_rows - len(draw.new_classes))]
        position = torch.tensor([*classes, index % self.config.log_freq])
        self._copy(torch.cat([draw.classes, draw.examples, position]), self.numbers)
        if self.config.lobotomize:
            generator = torch_generator(self.outer.seed, "lobotomy", index)
            drawn = draw_rows(self.outer.model.head, draw.new_classes, generator)
            self._copy(torch.cat([drawn, drawn[-1:].expand(self.num_rows - len(drawn), -1)]), self.rows)

    def update(self) -> None:
        """Do one update with what the buffers hold. No shape, and nothing the host does, depends on their values."""
        sizes = [self.num_examples, self.num_examples, self.num_rows, 1]
        classes, examples, new_classes, position = self.numbers.split(sizes)
        if self.config.lobotomize:
            with torch.no_grad():
                self.outer.model.head.weight.index_copy_(0, new_classes, self.rows)
        images = self.data.floats(self.data.images[classes, examples], self.dtype)
        outcome = self.run(Episode(images, classes, self.support, query_start(self.config), ()))
        self.outer.finish(outcome.gradients)
        values = torch.stack([outcome.loss, outcome.accuracy]).to(self.dtype)
        self.ring.index_copy_(1, position, values[:, None])

    def outcome(self, index: int) -> EpisodeOutcome:
        """Return views into the ring: loss and accuracy of update `index`."""
        loss, accuracy = self.ring[:, index % self.config.log_freq]
        return EpisodeOutcome(loss, accuracy, {})

    def _copy(self, values: torch.Tensor, buffer: torch.Tensor) -> None:
        # Pinned memory is not used again before the copy is done; the host would wait for a copy from other memory.
        values = values.pin_memory() if self.device.type == "cuda" else values
        buffer.copy_(values, non_blocking=True)


class UpdateGraph:
    """CUDA graphs with a parallel branch for the update of each training, so that a GPU does several at once.

    Where not all fit, or more at once gain nothing, several graphs replay one after another. How many branches a graph
    has is doubled as long as memory lasts and the next updates get faster by it (`next_branches`): any number does the
    same updates. failure: why it runs without graphs, where the updates cannot be captured.
    """

    def __init__(self, updates: Sequence[StaticUpdate]) -> None:
        self.updates = updates
        self.streams = [torch.cuda.Stream() for _ in updates]
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.played, self.branches, self.most, self.failure = 0, 0, 1, ""
        # Of an update of all trainings, by number of branches; of the number on trial, a sum.
        self.seconds: dict[int, float] = {}
        self.is_decided, self.spent, self.bytes_of_one = False, 0.0, 1

    @property
    def note(self) -> str:
        if self.failure or not self.is_decided or len(self.updates) == 1:
            return self.failure
        return f"{self.branches} branches at once, in {len(self.graphs)} graphs (memory has room for {self.most})"

    def step(self, index: int) -> list[EpisodeOutcome]:
        """Do update `index` of every training: the first few as they come, those after them by replaying."""
        for update in self.updates:
            update.fill(index)
        if self.played == 0:
            count_on_device([update.outer.optimizer for update in self.updates])
        if self.played >= _WARM_UPS and not self.is_decided and (self.played - _WARM_UPS) % _TRIAL == 0:
            self._try_next()
        if self.played < _WARM_UPS or self.failure:
            self._one_by_one()
        elif self.is_decided:
            self._replay()
        else:
            started = clock(self.updates[0].device)
            self._replay()
            self.spent += clock(self.updates[0].device) - started
        self.played += 1
        return [update.outcome(index) for update in self.updates]

    def _replay(self) -> None:
        for graph in self.graphs:
            graph.replay()

    def _one_by_one(self) -> None:
        """Run every update on a stream, each after the one before: together they may not fit."""
        for position, stream in enumerate(self.streams):
            before = torch.cuda.memory_reserved()
            self._fork([position], [stream])
            if self.played == position == 0:
                self.bytes_of_one = max(1, torch.cuda.memory_reserved() - before)

    def _fork(self, positions: Sequence[int], streams: Sequence[torch.cuda.Stream]) -> None:
        """Run these updates side by side, each on a stream, and wait for all."""
        current = torch.cuda.current_stream()
        for stream in streams:
            stream.wait_stream(current)
        try:
            for position, stream in zip(positions, streams, strict=True):
                with torch.cuda.stream(stream):
                    self.updates[position].update()
        finally:  # A capture without one of its streams cannot end, and torch could make no other one.
            for stream in streams:
                current.wait_stream(stream)

    def _try_next(self) -> None:
        """Note how long the number of branches on trial took, and capture the next, or the best for good."""
        if self.branches:
            self.seconds[self.branches] = self.spent / _TRIAL
        else:
            torch.cuda.empty_cache()
            fitting = int(_SHARE * torch.cuda.mem_get_info()[0] / self.bytes_of_one)
            self.most = max(1, min(len(self.updates), fitting))
        branches = next_branches(self.seconds, self.most)
        self.is_decided, self.spent = branches in self.seconds, 0.0
        if branches != self.branches:
            self._capture(branches)

    def _capture(self, branches: int) -> None:
        problem = self._make_graphs(branches)
        if not problem:
            return
        self.graphs, self.is_decided = [], True
        if self.seconds and branches not in self.seconds:  # Fewer could be captured: memory is too short.
            self._capture(next_branches(self.seconds, most=0))
        else:
            self.failure = f"the update cannot be captured as one graph, and runs without: {problem}"

    def _make_graphs(self, branches: int) -> str:
        """Capture all updates; return the error, in words: the exception would keep memory alive by its traceback."""
        self.graphs, self.branches = [], branches
        for update in self.updates:
            update.outer.optimizer.zero_grad()  # Else gradients would keep the memory of the graphs before alive.
        positions = range(len(self.updates))
        try:
            for first in positions[::branches]:
                # One after another, in this order: so they may share memory, which belongs to a stream.
                graph, pool = torch.cuda.CUDAGraph(), self.graphs[0].pool() if self.graphs else None
                together = positions[first : first + branches]
                with torch.cuda.graph(graph, pool=pool):
                    self._fork(together, self.streams[: len(together)])
                self.graphs.append(graph)
        except RuntimeError as error:
            cause: BaseException = error
            while isinstance(cause.__context__, RuntimeError):  # After one error, all of a capture fails.
                cause = cause.__context__
            return str(cause).partition("\n")[0] or type(cause).__name__
        return ""


def next_branches(seconds: Mapping[int, float], most: int) -> int:
    """Return how many branches to try next, or, when that was tried, the fewest that are nearly as fast as the best.

    seconds: of an update of all trainings, by the numbers tried. They are doubled, up to `most`, while that gains.
    """
    last = max(seconds, default=0)
    best = min(seconds.values(), default=math.inf)
    gained = last <= 1 or seconds[last] < _GAIN * min(s for tried, s in seconds.items() if tried < last)
    if last < most and gained:
        return min(max(1, 2 * last), most)
    return min(tried for tried, s in seconds.items() if _GAIN * s <= best)


def count_on_device(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let Adam count its steps on the device. Loading another engine's checkpoint resets this, so: after loading."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["capturable"] = True
