"""What a model meets: episodes, shuffled batches and trajectories, drawn without replacement and again alike."""

from typing import Any

import pytest
import torch

from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import (
    biased_batch,
    draw_episode,
    draw_examples,
    draw_run,
    draw_validation,
    shuffled_batch,
)
from anml.errors import DataError

CLASSES, EXAMPLES = 30, 20


@pytest.fixture(scope="module")
def data() -> ClassImages:
    """Images of two pixels that say which class and which example they are."""
    classes, examples = torch.meshgrid(torch.arange(CLASSES), torch.arange(EXAMPLES), indexing="ij")
    return ClassImages(torch.stack([classes, examples], dim=-1)[:, :, None, None].to(torch.uint8), "numbered")


def make_config(**changes: Any) -> TrainConfig:
    values = {"dataset": "omniglot", "model": "sanml", "num_batches": 20, "remember_size": 64}
    return TrainConfig(**(values | changes))


def identities(images: torch.Tensor) -> list[tuple[int, int]]:
    """Read class and example off the pixels."""
    return [(int(c), int(e)) for c, e in (images.double() * 255).round().reshape(len(images), 2)]


def test_inner_loop_meets_one_class_each_example_once(data):
    episode = draw_episode(data, make_config(), seed=1, index=0)
    support = identities(episode.images[:20])
    assert {c for c, _ in support} == set(episode.new_classes) == set(episode.labels[:20].tolist())
    assert len(episode.new_classes) == 1
    assert sorted(e for _, e in support) == list(range(20))
    assert episode.support_index.tolist() == [[i] for i in range(20)]


def test_remember_set_is_drawn_from_all_classes_without_replacement(data):
    remembered = [identities(draw_episode(data, make_config(), 1, index).images[20:]) for index in range(20)]
    assert {len(set(examples)) for examples in remembered} == {64}
    assert len({identity for examples in remembered for identity in examples}) > 500  # Of 600 images.


def test_labels_name_the_class_of_every_image(data):
    episode = draw_episode(data, make_config(), seed=3, index=5)
    assert [c for c, _ in identities(episode.images)] == episode.labels.tolist()


def test_meta_loss_is_on_support_and_remember_set(data):
    assert draw_episode(data, make_config(), 1, 0).query_start == 0


def test_remember_only_takes_the_meta_loss_on_the_remember_set(data):
    assert draw_episode(data, make_config(remember_only=True), 1, 0).query_start == 20


def test_cycles_repeat_the_same_batches_in_order(data):
    index = draw_episode(data, make_config(batch_size=5, num_batches=2, train_cycles=3), 1, 0).support_index
    assert index.tolist() == [list(range(5)), list(range(5, 10))] * 3


def test_uniform_sampling_draws_different_examples_of_many_classes(data):
    episode = draw_episode(data, make_config(sample_method="uniform"), 1, 0)
    support = identities(episode.images[:20])
    assert len(set(support)) == 20
    assert episode.new_classes == tuple(sorted({c for c, _ in support}))
    assert len(episode.new_classes) > 5


def test_every_class_gets_its_turn(data):
    config = make_config(num_batches=1, remember_size=0)
    seen = [draw_episode(data, config, 1, index).labels.item() for index in range(900)]
    counts = torch.bincount(torch.tensor(seen), minlength=CLASSES)
    assert counts.min() > 12  # 30 expected; six standard deviations are 33.
    assert counts.max() < 63


def test_an_episode_depends_on_its_seed_and_index_alone(data):
    def draw(seed: int, index: int) -> list[tuple[int, int]]:
        return identities(draw_episode(data, make_config(), seed, index).images)

    assert draw(1, 17) == draw(1, 17)
    assert draw(1, 17) != draw(1, 18)
    assert draw(1, 17) != draw(2, 17)


@pytest.mark.parametrize(("method", "batches"), [("single", EXAMPLES + 1), ("uniform", CLASSES * EXAMPLES + 1)])
def test_an_inner_loop_longer_than_the_data_is_refused(data, method, batches):
    with pytest.raises(DataError, match=f"inner loop of {batches}"):
        draw_episode(data, make_config(sample_method=method, num_batches=batches), 1, 0)


def test_pixels_are_the_same_numbers_in_both_precisions(data):
    chosen = torch.tensor([29, 7]), torch.tensor([3, 19])
    single, double = (data.batch(*chosen, dtype)[0] for dtype in (torch.float32, torch.float64))
    assert torch.equal(single.double(), double)
    assert single.max() == torch.tensor(29 / 255)


def test_an_epoch_meets_every_image_once_in_a_new_order(data):
    steps = -(-CLASSES * EXAMPLES // 256)
    batches = [shuffled_batch(data, 256, seed=1, step=step) for step in range(2 * steps)]
    epochs = [[i for images, _ in part for i in identities(images)] for part in (batches[:steps], batches[steps:])]
    assert [len(labels) for _, labels in batches[:steps]] == [256, 256, 88]
    assert [len(set(epoch)) for epoch in epochs] == [600, 600]
    assert epochs[0] != epochs[1]


def test_validation_examples_are_all_different(data):
    images, labels = draw_validation(data.first_examples(15, 20), 100, seed=1, index=10)
    assert len(set(identities(images))) == 100
    assert {e for _, e in identities(images)} == {15, 16, 17, 18, 19}
    assert [c for c, _ in identities(images)] == labels.tolist()


def test_a_trajectory_never_tests_on_what_it_learned(data):
    trajectory = draw_run(data, 10, 15, 5, seed=1, run=0)
    learned = identities(trajectory.images(data, trajectory.train_examples, torch.float32))
    tested = identities(trajectory.images(data, trajectory.test_examples, torch.float32))
    assert len(set(learned)) == 150
    assert len(set(tested)) == 50
    assert not set(learned) & set(tested)


def test_a_trajectory_comes_class_after_class(data):
    trajectory = draw_run(data, 10, 15, 5, seed=1, run=0)
    learned = identities(trajectory.images(data, trajectory.train_examples, torch.float32))
    assert [c for c, _ in learned] == trajectory.classes.repeat_interleave(15).tolist()
    assert len(set(trajectory.classes.tolist())) == 10


def test_a_short_trajectory_is_the_beginning_of_the_long_one(data):
    short, long = (draw_run(data, classes, 15, 5, seed=1, run=3) for classes in (10, 30))
    assert torch.equal(short.classes, long.classes[:10])
    assert torch.equal(short.train_examples, long.train_examples[:10])
    assert torch.equal(short.test_examples, long.test_examples[:10])


def test_runs_differ_in_classes_and_examples(data):
    first, second = (draw_run(data, 10, 15, 5, seed=1, run=run) for run in (0, 1))
    assert first.classes.tolist() != second.classes.tolist()
    assert not torch.equal(first.train_examples, second.train_examples)


@pytest.mark.parametrize(("classes", "train", "test"), [(31, 15, 5), (10, 16, 5)])
def test_more_than_the_data_holds_is_refused(data, classes, train, test):
    with pytest.raises(DataError, match="30 evaluation classes of 20 examples"):
        draw_run(data, classes, train, test, seed=1, run=0)


def test_with_replacement_an_inner_loop_may_be_longer_than_its_class(data):
    config = make_config(num_batches=40, replacement=True)
    draws = [draw_examples(data, config, 1, index) for index in range(50)]
    assert [len(draw.classes[:40].unique()) for draw in draws] == [1] * 50
    counts = torch.stack([torch.bincount(draw.examples[:40], minlength=EXAMPLES) for draw in draws])
    assert counts.max(dim=1).values.min() > 2  # None has each example just twice.
    assert counts.sum(dim=0).min() > 60  # 100 are expected of each.


def test_replacement_changes_nothing_where_there_are_enough(data):
    draws = [draw_examples(data, make_config(replacement=flag), 1, 3) for flag in (True, None)]
    assert torch.equal(draws[0].examples, draws[1].examples)


def test_the_row_of_the_first_example_alone_may_be_new(data):
    config = make_config(sample_method="uniform", lobo_classes="first")
    draw = draw_examples(data, config, 1, 0)
    assert draw.new_classes == (int(draw.classes[0]),)


@pytest.mark.parametrize(("rows", "biased"), [(range(3, 5), 6), (range(40, 50), 0)])
def test_a_biased_batch_holds_a_fraction_of_the_classes_re_drawn(data, rows, biased):
    config = make_config(batch_size=8, lobo_biased_fraction=0.8)
    of_rows = [c in rows for step in range(30) for c in biased_batch(data, config, rows, step)[1][:biased].tolist()]
    assert len(of_rows) == 30 * biased
    assert all(of_rows)
    others = torch.cat([biased_batch(data, config, rows, step)[1][biased:] for step in range(60)])
    assert len(others.unique()) > 20
