"""Draws what a model learns from: training episodes, shuffled batches, and test-train runs of unseen classes."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from anml.config.training import FewShot, TrainConfig
from anml.data.class_images import Batch, ClassImages
from anml.errors import DataError
from anml.rng import torch_generator


class Episode(NamedTuple):
    """One episode of meta-training (train-train, then train-test).

    images [M, C, H, W], labels int64 [M]: the examples of the inner loop, followed by the remember set.
    support_index int64 [T, B]: which images the T batches of the inner loop hold, in order.
    query_start: the meta loss is taken on images[query_start:], that is on all, or on the remember set only.
    new_classes: the classes about to be learned, whose output rows are re-drawn before the inner loop.
    """

    images: torch.Tensor
    labels: torch.Tensor
    support_index: torch.Tensor
    query_start: int
    new_classes: tuple[int, ...]


class Draw(NamedTuple):
    """Which examples an episode consists of: those of the inner loop, in order, followed by the remember set.

    classes, examples: int64 [M], on the CPU. new_classes: those of the inner loop, or of its first example, sorted.
    """

    classes: torch.Tensor
    examples: torch.Tensor
    new_classes: tuple[int, ...]


def draw_episode(
    data: ClassImages, config: TrainConfig, seed: int, index: int, dtype: torch.dtype = torch.float32
) -> Episode:
    """Draw the episode with the given index (OML, Javed & White 2019, section 3; ANML, Beaulieu et al. 2020)."""
    draw = draw_examples(data, config, seed, index)
    # Each image of the episode is cropped and flipped once, whichever of its steps meet it.
    augment = torch_generator(seed, "augment", "episode", index) if config.augment else None
    images, labels = data.batch(draw.classes, draw.examples, dtype, augment)
    support = support_index(config).to(images.device)
    return Episode(images, labels, support, query_start(config), draw.new_classes)


def draw_examples(data: ClassImages, config: TrainConfig, seed: int, index: int) -> Draw:
    """Draw the examples of the episode with the given index. Raises DataError when there are not enough."""
    generator = torch_generator(seed, "episode", index)
    count = config.batch_size * config.inner_steps
    tasks = {"single": 1, "sequential": config.tasks or 1}.get(config.sample_method)
    has = data.examples_per_class * (tasks or data.num_classes)
    may_repeat = tasks and config.replacement
    if count > has and not may_repeat:  # The inner loop would learn from the remember set, without an error.
        message = f"an inner loop of {count} different examples ({config.sample_method}), but there are only {has}"
        raise DataError(message)
    if tasks == 1:
        chosen = int(torch.randint(data.num_classes, (1,), generator=generator))
        examples = _draw(data.examples_per_class, count, generator)
        classes, new_classes = torch.full((count,), chosen), (chosen,)
    elif tasks:
        chosen = torch.randperm(data.num_classes, generator=generator)[:tasks]
        examples = torch.cat([_draw(data.examples_per_class, count // tasks, generator) for _ in chosen])
        classes, new_classes = chosen.repeat_interleave(count // tasks), tuple(sorted(chosen.tolist()))
    else:
        classes, examples = _draw_anywhere(data, count, generator)
        new_classes = tuple(sorted(set(classes[: 1 if config.lobo_classes == "first" else count].tolist())))
    remember = _draw_anywhere(data, config.remember_size, generator)
    return Draw(torch.cat([classes, remember[0]]), torch.cat([examples, remember[1]]), new_classes)


def draw_few_shot(
    data: ClassImages, config: TrainConfig, index: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Draw the episode with this index of different classes: images [ways, shots + queries, C, H, W]."""
    generator, few = torch_generator(config.seed, "episode", index), config.few_shot or FewShot()
    count = few.shots + few.queries
    classes = torch.randperm(data.num_classes, generator=generator)[: few.ways]
    examples = torch.cat([_draw(data.examples_per_class, count, generator) for _ in classes])
    augment = torch_generator(config.seed, "augment", "episode", index) if config.augment else None
    images, _ = data.batch(classes.repeat_interleave(count), examples, dtype, augment)
    return images.view(len(classes), count, *images.shape[1:])


def support_index(config: TrainConfig) -> torch.Tensor:
    """Return which of an episode's examples the batches of the inner loop hold, int64 [T, B]."""
    count = config.batch_size * config.inner_steps
    return torch.arange(count).view(-1, config.batch_size).repeat(config.train_cycles, 1)


def query_start(config: TrainConfig) -> int:
    """Return the first example of an episode that the meta loss is taken on."""
    return config.batch_size * config.inner_steps if config.remember_only else 0


def _draw_anywhere(data: ClassImages, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw distinct examples from all classes (all there are, if fewer): class and example indexes, int64 [count]."""
    chosen = torch.randperm(data.num_classes * data.examples_per_class, generator=generator)[:count]
    return chosen // data.examples_per_class, chosen % data.examples_per_class


def _draw(total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw numbers below `total`, int64 [count]: different ones, or each for itself where there are too few."""
    if count > total:
        return torch.randint(total, (count,), generator=generator)
    return torch.randperm(total, generator=generator)[:count]


def draw_validation(data: ClassImages, count: int, seed: int, index: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Draw `count` random examples (images [n, C, H, W], labels [n]) of a validation set."""
    return data.batch(*_draw_anywhere(data, count, torch_generator(seed, "validation", index)), dtype)


def shuffled_batch(
    data: ClassImages, batch_size: int, seed: int, step: int, dtype: torch.dtype = torch.float32, augment: bool = False
) -> Batch:
    """Return batch number `step` (from 0) of an endless i.i.d. pass: every epoch is a new shuffle of all images."""
    total = data.num_classes * data.examples_per_class
    per_epoch = -(-total // batch_size)
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(total, generator=torch_generator(seed, "shuffle", epoch))
    chosen = order[position * batch_size : (position + 1) * batch_size]
    generator = torch_generator(seed, "augment", "batch", step) if augment else None
    return data.batch(chosen // data.examples_per_class, chosen % data.examples_per_class, dtype, generator)


def biased_batch(data: ClassImages, config: TrainConfig, rows: Iterable[int], step: int) -> Batch:
    """Return the batch of a step after a zapping: `lobo_biased_fraction` of its examples are of the classes `rows`.

    The others are of all classes, and so are all where the data have no such class (as in higherANML).
    """
    generator = torch_generator(config.seed, "biased", step)
    classes = torch.tensor([row for row in rows if row < data.num_classes], dtype=torch.int64)
    examples = (classes[:, None] * data.examples_per_class + torch.arange(data.examples_per_class)).flatten()
    fraction = 1.0 if config.lobo_biased_fraction is None else config.lobo_biased_fraction
    count = int(config.batch_size * fraction) if len(examples) else 0
    others = _draw(data.num_classes * data.examples_per_class, config.batch_size - count, generator)
    chosen = torch.cat([examples[_draw(len(examples), count, generator)], others]) if count else others
    augment = torch_generator(config.seed, "augment", "biased", step) if config.augment else None
    return data.batch(chosen // data.examples_per_class, chosen % data.examples_per_class, augment=augment)


class RunExamples(NamedTuple):
    """What one run of an evaluation meets: classes in order of learning, relabelled 0, 1, 2, ...

    classes: int64 [n], indexes into the data set. train_examples int64 [n, k], test_examples int64 [n, m]:
    which of each class's examples are learned and which are held out.
    """

    classes: torch.Tensor
    train_examples: torch.Tensor
    test_examples: torch.Tensor

    def images(self, data: ClassImages, examples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the images [n * k, C, H, W] of example indexes [n, k], class after class."""
        classes = self.classes[:, None].expand_as(examples)
        return data.batch(classes.reshape(-1), examples.reshape(-1), dtype)[0]


def draw_run(data: ClassImages, classes: int, train: int, test: int, seed: int, run: int) -> RunExamples:
    """Draw the classes of a run and split the examples of each. The same run draws the same for every model.

    Classes are drawn first and examples class by class, so a run of 100 classes is the beginning of the same run of
    600 (the examples of a class depend on the seed, the run and the class alone). Raises DataError when there are not
    enough.
    """
    check_run(data, classes, train, test)
    order = torch.randperm(data.num_classes, generator=torch_generator(seed, "classes", run))[:classes]
    generators = [torch_generator(seed, "examples", run, label) for label in order.tolist()]
    picks = torch.stack([torch.randperm(data.examples_per_class, generator=generator) for generator in generators])
    return RunExamples(order, picks[:, :train], picks[:, train : train + test])


def check_run(data: ClassImages, classes: int, train: int, test: int) -> None:
    """Make sure that a trajectory of this size can be drawn. Raises DataError."""
    if classes > data.num_classes or train + test > data.examples_per_class:
        message = f"{data.name} has {data.num_classes} evaluation classes of {data.examples_per_class} examples; "
        message += f"asked for {classes} classes of {train} training and {test} test examples"
        raise DataError(message)
