"""Sequential and i.i.d. learning against plain loops over the whole model, in float64."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from anml.config.evaluation import EvalConfig
from anml.evaluate.learner import ReferenceLearner
from anml.evaluate.prepared_run import PreparedRun, Shape
from anml.evaluate.protocols import Score, class_scores, learn_in_sequence, learn_shuffled
from anml.models import build_model
from anml.models.meta_model import MetaModel, select_names
from anml.rng import torch_generator
from tests.evaluate.runs import ignore, prepare_run

SHAPE = Shape(classes=12, train_examples=10, test_examples=5)


def learn(protocol, learner: ReferenceLearner, prepared: PreparedRun, config: EvalConfig) -> list[Score]:
    """Return the scores of one trajectory."""
    return [score for [score] in protocol(learner, [prepared], config, ignore)]


def make_images(model: MetaModel, data, config) -> PreparedRun:
    """Return the same run with images for inputs, whatever is learned."""
    everything = config.model_copy(update={"opt_params": ("all",)})
    prepared = prepare_run(model, everything, data, SHAPE, run=0, dtype=torch.float64)
    assert prepared.train_inputs.dim() == 4
    return prepared


def plain_adam(model: MetaModel, names: list[str], learning_rate: float) -> torch.optim.Adam:
    model.requires_grad_(False)
    return torch.optim.Adam([model.get_parameter(name).requires_grad_(True) for name in names], lr=learning_rate)


def plain_step(model: MetaModel, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    optimizer.step()


def learn_examples(learner: ReferenceLearner, steps: int) -> None:
    """Learn one example at a time, from the start again when they are used up."""
    for step in range(steps):
        learner.learn_each(step % 120, step % 120 + 1)


@pytest.mark.parametrize(
    ("params", "steps", "tolerance"), [("head", 300, 1e-12), ("all", 100, 1e-9)], ids=["head", "unfrozen"]
)
def test_learning_equals_a_plain_adam_loop_on_the_whole_model(model, data, make_config, params, steps, tolerance):
    config = make_config(opt_params=params)
    prepared = prepare_run(model, config, data, SHAPE, run=0, dtype=torch.float64)
    assert prepared.stage == ("head" if params == "head" else "images")
    learner = ReferenceLearner(prepared, 0.001)
    learn_examples(learner, steps)

    images = make_images(model, data, config)
    expected = copy.deepcopy(images.model)
    optimizer = plain_adam(expected, select_names(expected, [params]), 0.001)
    for step in range(steps):
        example = torch.tensor([step % 120])
        plain_step(expected, optimizer, images.train_inputs[example], images.train_labels[example])
    for name, parameter in expected.named_parameters():
        if name.endswith("conv.bias"):
            continue  # In front of an InstanceNorm: the gradient is rounding noise, which Adam scales up.
        assert (learner.model.get_parameter(name) - parameter).abs().max() <= tolerance, name


def plain_accuracy(model: MetaModel, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Return the accuracy of each class, image by image."""
    with torch.no_grad():
        right = [float(model(image[None]).argmax() == label) for image, label in zip(images, labels, strict=True)]
    per_class = len(right) // 12
    return [sum(right[i * per_class : (i + 1) * per_class]) / per_class for i in range(12)]


@pytest.mark.parametrize("params", ["head", "all"])
def test_sequential_scores_are_those_of_a_plain_loop(model, data, make_config, params):
    config = make_config(opt_params=params, eval_freq=[3, 7])
    prepared = prepare_run(model, config, data, SHAPE, run=0, dtype=torch.float64)
    scores = {
        score.classes_trained: score
        for score in learn(learn_in_sequence, ReferenceLearner(prepared, 0.003), prepared, config)
    }

    images = make_images(model, data, config)
    plain = copy.deepcopy(images.model)
    optimizer = plain_adam(plain, select_names(plain, [params]), 0.003)
    for step in range(120):  # One Adam, its state kept from class to class.
        example = slice(step, step + 1)
        plain_step(plain, optimizer, images.train_inputs[example], images.train_labels[example])
        if step + 1 in (30, 70, 120):
            score = scores.pop((step + 1) // 10)
            assert score.train.top1.tolist() == plain_accuracy(plain, images.train_inputs, images.train_labels)
            assert score.test.top1.tolist() == plain_accuracy(plain, images.test_inputs, images.test_labels)
            assert score.train.top1.sum() > 0
    assert not scores


@pytest.mark.parametrize(
    ("eval_freq", "points"),
    [(5, [1, 5, 10, 12]), (0, [12]), (4, [1, 4, 8, 12]), ([3, 3, 7, 50], [3, 7, 12]), (None, list(range(1, 13)))],
)
def test_sequential_is_scored_after_the_first_class_then_periodically_and_at_the_end(
    model, data, make_config, eval_freq, points
):
    config = make_config(eval_freq=eval_freq, train_examples=1)
    prepared = prepare_run(model, config, data, Shape(12, 1, 1), run=0)
    scores = learn(learn_in_sequence, ReferenceLearner(prepared, 0.001), prepared, config)
    assert [score.classes_trained for score in scores] == points
    assert [score.step for score in scores] == points


def test_classes_not_learned_yet_take_part_in_every_scoring(model, data, make_config):
    config = make_config(eval_freq=3)
    prepared = prepare_run(model, config, data, SHAPE, run=0)
    scores = learn(learn_in_sequence, ReferenceLearner(prepared, 0.001), prepared, config)
    assert {len(part.top1) for score in scores for part in (score.train, score.test)} == {12}


def test_iid_equals_a_plain_loop_over_shuffled_batches(model, data, make_config):
    config = make_config(eval_method="iid", batch_size=32, epochs=2, opt_params="all")
    prepared = prepare_run(model, config, data, SHAPE, run=0, dtype=torch.float64)
    scores = learn(learn_shuffled, ReferenceLearner(prepared, 0.01), prepared, config)
    plain = copy.deepcopy(prepared.model)
    optimizer = plain_adam(plain, select_names(plain, ["all"]), 0.01)
    for epoch in (1, 2):
        order = torch.randperm(120, generator=torch_generator(config.seed, "order", 0, epoch))
        for start in range(0, 120, 32):
            batch = order[start : start + 32]
            plain_step(plain, optimizer, prepared.train_inputs[batch], prepared.train_labels[batch])
        assert scores[epoch - 1].train.top1.tolist() == plain_accuracy(
            plain, prepared.train_inputs, prepared.train_labels
        )
    assert [(score.epoch, score.step) for score in scores] == [(1, 4), (2, 8)]


@pytest.mark.parametrize(
    ("eval_freq", "steps"), [(None, [4, 8]), (0, [8]), (3, [1, 3, 6, 8]), (4, [1, 4, 8]), ([2, 5, 90], [2, 5, 8])]
)
def test_iid_is_scored_after_optimizer_steps(model, data, make_config, eval_freq, steps):
    config = make_config(eval_method="iid", batch_size=32, epochs=2, eval_freq=eval_freq)
    prepared = prepare_run(model, config, data, SHAPE, run=0)
    scores = learn(learn_shuffled, ReferenceLearner(prepared, 0.001), prepared, config)
    assert [score.step for score in scores] == steps
    assert {score.classes_trained for score in scores} == {12}


def test_learning_leaves_the_prepared_run_as_it_was(model, data, make_config):
    config = make_config(opt_params="all")
    prepared = prepare_run(model, config, data, SHAPE, run=0)
    before = copy.deepcopy(prepared.model.state_dict())
    learn_examples(ReferenceLearner(prepared, 0.01), 3)
    assert all(torch.equal(value, before[name]) for name, value in prepared.model.state_dict().items())


def test_a_batch_norm_keeps_its_statistics(data, make_config):
    args = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": [3], "norm_type": "bn"}}
    model = build_model("classifier", args, (1, 28, 28), seed=1)
    prepared = prepare_run(model, make_config(opt_params="all"), data, SHAPE, run=0)
    learner = ReferenceLearner(prepared, 0.01)
    learn_examples(learner, 3)
    assert learner.model.state_dict()["encoder.block1.norm.num_batches_tracked"] == 0
    assert learner.model.state_dict()["encoder.block1.norm.running_mean"].eq(0).all()


def test_class_scores_count_hits_class_by_class():
    logits = torch.zeros(6, 8)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    ranks = [0, 1, 0, 0, 4, 5]  # How many other outputs are above the right one.
    for row, (label, above) in enumerate(zip(labels.tolist(), ranks, strict=True)):
        others = [output for output in range(8) if output != label]
        logits[row, label] = 1
        logits[row, others[:above]] = torch.arange(2.0, 2 + above)
    scores = class_scores(logits, labels, classes=3)
    assert scores.top1.tolist() == [0.5, 1, 0]
    assert scores.top5.tolist() == [1, 1, 0.5]


def test_logits_with_a_nan_are_never_right():
    logits = torch.eye(2, 8)
    logits[0, 0] = torch.nan
    scores = class_scores(logits, torch.tensor([0, 1]), classes=2)
    assert (scores.top1.tolist(), scores.top5.tolist()) == ([0, 1], [0, 1])
    diverged = class_scores(torch.full((6, 8), torch.nan), torch.arange(6), classes=6)
    assert (diverged.top1.sum(), diverged.top5.sum()) == (0, 0)


def test_unused_outputs_can_win():
    logits = torch.zeros(2, 30)
    logits[:, 29] = 1
    assert class_scores(logits, torch.tensor([0, 1]), classes=2).top1.tolist() == [0, 0]


def test_unused_outputs_take_part_in_the_softmax(model, data, make_config):
    prepared = prepare_run(model, make_config(), data, SHAPE, run=0)
    learner = ReferenceLearner(prepared, 0.01)
    learn_examples(learner, 1)
    moved = (learner.model.head.weight - prepared.model.head.weight).abs().amax(dim=1)
    assert (moved[12:] > 0).all()


def test_top5_of_a_model_with_few_outputs_is_all():
    assert class_scores(torch.rand(4, 3), torch.tensor([0, 1, 2, 2]).sort().values, classes=2).top5.tolist() == [1, 1]
