"""Whole meta-updates on tensors that stay in their memory, so that one CUDA (HIP) graph can replay them.

The graph holds the lobotomy, the conversion of the episode's images from uint8, the episode by an engine, clipping,
Adam, and the writing of loss and accuracy into a ring. Before a replay the host draws which examples and which new
output rows the update uses, from the same named generators as ever, and copies these few kilobytes. Nothing waits for
the device: the training reads the ring when it logs. A CPU can run everything but capture and replay.
"""

from collections.abc import Callable, Sequence

import torch

from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode, draw_examples, query_start, support_index
from anml.meta.engine import EpisodeOutcome
from anml.meta.step import OuterStep, draw_rows
from anml.rng import torch_generator

# Updates before the capture: libraries choose their algorithms and allocate, which a capture may not do.
_WARM_UPS = 3


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
        self.num_rows = 1 if config.sample_method == "single" else config.batch_size * config.inner_steps
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
    """One CUDA graph with a parallel branch for the update of each training, so that a GPU does them at once.

    note: why it runs without a graph, where the updates cannot be captured.
    """

    def __init__(self, updates: Sequence[StaticUpdate]) -> None:
        self.updates = updates
        self.streams = [torch.cuda.Stream() for _ in updates]
        self.graph = torch.cuda.CUDAGraph()
        self.played, self.note = 0, ""

    def step(self, index: int) -> list[EpisodeOutcome]:
        """Do update `index` of every training: the first few as they come, those after them by replaying."""
        for update in self.updates:
            update.fill(index)
        if self.played == 0:
            count_on_device([update.outer.optimizer for update in self.updates])
        if self.played == _WARM_UPS:
            self._capture()
        if self.played < _WARM_UPS or self.note:
            self._branch()
        else:
            self.graph.replay()
        self.played += 1
        return [update.outcome(index) for update in self.updates]

    def _branch(self) -> None:
        current = torch.cuda.current_stream()
        for stream, update in zip(self.streams, self.updates, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                update.update()
        for stream in self.streams:
            current.wait_stream(stream)

    def _capture(self) -> None:
        try:
            with torch.cuda.graph(self.graph):
                self._branch()
        except RuntimeError as error:
            self.note = f"the update cannot be captured as one graph, and runs without: {error}".splitlines()[0]


def count_on_device(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Let Adam count its steps on the device. Loading another engine's checkpoint resets this, so: after loading."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["capturable"] = True
