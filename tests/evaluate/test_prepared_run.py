"""What a run starts from: its examples, a re-initialised head, least squares."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from anml.cli.check_config import find_problems
from anml.config.evaluation import EvalConfig
from anml.config.training import TrainConfig
from anml.data.class_images import ClassImages
from anml.errors import CheckpointError, ConfigError
from anml.evaluate.learner import Unlearned
from anml.evaluate.prepared_run import PreparedRun, Shape, check_head, set_head, solve, support_examples
from anml.evaluate.protocols import Score, score_unlearned
from anml.models import build_model
from anml.models.meta_model import MetaModel
from tests.evaluate.runs import ignore, prepare_run

SHAPE = Shape(classes=12, train_examples=10, test_examples=5)
OML = {"num_filters": 4, "strides": [2, 1, 2], "hidden": 9, "num_classes": 30}


def score_once(prepared: PreparedRun, config: EvalConfig) -> Score:
    [[score]] = score_unlearned(Unlearned([prepared]), [prepared], config, ignore)
    return score


def changed(model: MetaModel, other: MetaModel) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, other.get_parameter(name))}


def test_the_head_is_drawn_kaiming_normal_and_its_bias_zeroed(data, make_config):
    model = build_model("sanml", {"rln_chs": 64}, (1, 28, 28), seed=1)
    prepared = prepare_run(model, make_config(), data, SHAPE, run=0)
    assert changed(prepared.model, model) == {"fc.weight", "fc.bias"}
    assert prepared.model.head.weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.01)
    assert prepared.model.get_parameter("fc.bias").eq(0).all()


def test_the_published_table_kept_the_bias(model, data, make_config):
    prepared = prepare_run(model, make_config(reinit_bias="keep"), data, SHAPE, run=0)
    assert changed(prepared.model, model) == {"fc.weight"}


def test_a_head_that_starts_at_zero_is_zero_whether_named_or_not(model, data, make_config):
    prepared = prepare_run(model, make_config(reinit_method="zero"), data, SHAPE, run=0)
    assert changed(prepared.model, model) == {"fc.weight", "fc.bias"}
    assert not any(parameter.any() for parameter in prepared.model.head.parameters())
    kept = prepare_run(model, make_config(reinit_method="zero", reinit_bias="keep"), data, SHAPE, run=0)
    assert changed(kept.model, model) == {"fc.weight"}
    drawn = prepare_run(model, make_config(reinit_method="zero", reinit_params="nm"), data, SHAPE, run=0).model
    assert not drawn.head.weight.any()
    assert drawn.get_parameter("nm.fc.weight").std() > 0.1


def test_norms_are_re_initialised_to_one_and_zero(model, data, make_config):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    prepared = prepare_run(model, make_config(reinit_params=["rln", "fc"]), data, SHAPE, run=0)
    assert {name for name in changed(prepared.model, model) if name.startswith("nm")} == set()
    assert prepared.model.get_parameter("rln.convBlock1.norm.weight").eq(1).all()
    assert prepared.model.get_parameter("rln.convBlock1.norm.bias").eq(0).all()


def test_features_are_those_of_the_re_initialised_encoder(model, data, make_config):
    prepared = prepare_run(model, make_config(reinit_params="all"), data, SHAPE, run=0)
    images = prepare_run(model, make_config(reinit_params="all", opt_params="all"), data, SHAPE, run=0).train_inputs
    torch.testing.assert_close(prepared.train_inputs, prepared.model.encode(images))


@pytest.mark.parametrize(("step", "changes"), [(1, {}), (3, {}), (1, {"reinit_params": "all"})])
def test_shifted_features_are_the_mean_over_all_places_of_the_image(model, data, make_config, step, changes):
    prepared = prepare_run(model, make_config(shifts=1, shift_step=step, **changes), data, SHAPE, run=0)
    images = prepare_run(model, make_config(opt_params="all", **changes), data, SHAPE, run=0).train_inputs
    edged = torch.cat([images[:, :, :1]] * step + [images] + [images[:, :, -1:]] * step, dim=2)
    edged = torch.cat([edged[..., :1]] * step + [edged] + [edged[..., -1:]] * step, dim=3)
    size, corners = images.shape[-1], (0, step, 2 * step)
    places = [edged[:, :, y : y + size, x : x + size] for y in corners for x in corners]
    mean = torch.stack([prepared.model.encode(moved) for moved in places]).mean(dim=0)
    torch.testing.assert_close(prepared.train_inputs, mean)
    assert not torch.allclose(mean, prepared.model.encode(images), atol=1e-3)


def test_a_step_of_one_pixel_is_the_default(make_config):
    assert make_config(shifts=1, shift_step=1) == make_config(shifts=1)


def test_shifts_are_refused_where_the_layers_before_the_features_learn(model, make_config):
    check_head(model, make_config(shifts=1))
    with pytest.raises(ConfigError, match=r"shifts: with these opt_params the encoder learns"):
        check_head(model, make_config(shifts=1, opt_params=["rln", "fc"]))


def test_runs_draw_their_own_head_classes_and_examples(model, data, make_config):
    first, second = (prepare_run(model, make_config(), data, SHAPE, run=run) for run in (0, 1))
    assert not torch.equal(first.model.head.weight, second.model.head.weight)
    assert not torch.equal(first.train_inputs, second.train_inputs)


def test_every_model_meets_the_same_images_and_starts_from_the_same_head(model, data, make_config):
    other = build_model("sanml", {"rln_chs": 4, "num_classes": 30}, (1, 28, 28), seed=5)
    first, second = (prepare_run(m, make_config(opt_params="all"), data, SHAPE, run=3) for m in (model, other))
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert torch.equal(first.test_inputs, second.test_inputs)
    assert torch.equal(first.model.head.weight, second.model.head.weight)


def test_flavors_share_the_images_of_a_run(model, data, make_config):
    flavors = ({"opt_params": "all"}, {"opt_params": "all", "eval_method": "iid", "lr": 0.1})
    first, second = (prepare_run(model, make_config(**flavor), data, SHAPE, run=3) for flavor in flavors)
    assert torch.equal(first.train_inputs, second.train_inputs)


def test_labels_count_the_classes_in_order_of_learning(model, data, make_config):
    prepared = prepare_run(model, make_config(), data, SHAPE, run=0)
    assert prepared.train_labels.tolist() == [label for label in range(12) for _ in range(10)]
    assert prepared.test_labels.tolist() == [label for label in range(12) for _ in range(5)]


@pytest.mark.parametrize("selector", ["head", "pn"])
def test_any_part_of_the_head_learns_from_features(data, make_config, selector):
    model = build_model("oml", OML, (1, 28, 28), seed=1)
    prepared = prepare_run(model, make_config(opt_params=selector), data, SHAPE, run=0)
    assert prepared.stage == {"head": "head", "pn": "features"}[selector]


def test_more_classes_than_outputs_are_refused(data, make_config):
    model = build_model("sanml", {"rln_chs": 4, "num_classes": 11}, (1, 28, 28), seed=1)
    with pytest.raises(ConfigError, match="12 classes do not fit the 11 outputs"):
        prepare_run(model, make_config(), data, SHAPE, run=0)


def lstsq_by_numpy(features: torch.Tensor, labels: torch.Tensor, outputs: int) -> np.ndarray:
    """Return weight and bias [features + 1, outputs] as higherANML finds them."""
    design = np.concatenate([features.numpy(), np.ones((len(features), 1))], axis=1)
    return np.linalg.lstsq(design, np.eye(outputs)[labels.numpy()], rcond=None)[0]


def test_a_network_may_go_on_as_it_was_trained(model, data, make_config):
    prepared = prepare_run(model, make_config(reinit_params=[], opt_params="all"), data, SHAPE, run=0)
    assert prepared.redrawn_names == []
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in prepared.model.state_dict().items())


def test_the_first_examples_of_a_trajectory_may_be_those_of_the_solution(model, data, make_config):
    config = make_config(eval_method="zero_shot", init_size=25, init_examples="first")
    prepared = prepare_run(model, config, data, SHAPE, run=0, dtype=torch.float64)
    labels = prepared.train_labels[:25]
    solution = lstsq_by_numpy(prepared.train_inputs[:25], labels, outputs=30)
    np.testing.assert_allclose(prepared.model.head.weight.T.numpy(), solution[:-1], rtol=0, atol=1e-9)
    assert torch.equal(prepared.model.head.weight.norm(dim=1).nonzero()[:, 0], labels.unique())


@pytest.mark.parametrize("init_size", [0, 25, 9000], ids=["one per class", "few", "all"])
@pytest.mark.parametrize("kind", ["anml", "oml"])
def test_zero_shot_is_least_squares_by_numpy(model, data, make_config, kind, init_size):
    model = model if kind == "anml" else build_model("oml", OML, (1, 28, 28), seed=1)
    config = make_config(eval_method="zero_shot", init_size=init_size)
    prepared = prepare_run(model, config, data, SHAPE, run=0, dtype=torch.float64)
    picked = support_examples(prepared.train_labels, init_size, config.seed, run=0)
    last = prepared.model.get_submodule("pn")[:-1] if kind == "oml" else nn.Identity()  # type: ignore[index]
    images = prepare_run(model, make_config(opt_params="all"), data, SHAPE, run=0, dtype=torch.float64)
    with torch.no_grad():
        train, test = (last(images.model.encode(part)) for part in (images.train_inputs, images.test_inputs))
    solution = lstsq_by_numpy(train[picked], prepared.train_labels[picked], outputs=30)
    np.testing.assert_allclose(prepared.model.head.weight.T.numpy(), solution[:-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        prepared.model.get_parameter(f"{model.head_layer}.bias").numpy(), solution[-1], rtol=0, atol=1e-9
    )
    score = score_once(prepared, config)
    right = (test.numpy() @ solution[:-1] + solution[-1]).argmax(axis=1) == prepared.test_labels.numpy()
    assert score.test.top1.tolist() == right.reshape(12, 5).mean(axis=1).tolist()
    assert (score.epoch, score.step, score.classes_trained) == (0, 0, 12)


def test_least_squares_of_a_model_that_diverged_are_refused(model, data, make_config):
    with torch.no_grad():
        model.get_parameter("rln.convBlock1.conv.weight")[0] = torch.nan
    with pytest.raises(CheckpointError, match="training diverged"):
        prepare_run(model, make_config(eval_method="zero_shot"), data, SHAPE, run=0)


def test_zero_shot_learns_something(model, data, make_config):
    config = make_config(eval_method="zero_shot")
    score = score_once(prepare_run(model, config, data, SHAPE, run=0), config)
    assert score.test.top1.mean() > 3 / 12
    assert score.test.top5.mean() > score.test.top1.mean()


def test_least_squares_is_also_a_start_for_learning(model, data, make_config):
    prepared = prepare_run(model, make_config(reinit_method="lstsq", opt_params="all"), data, SHAPE, run=0)
    zero_shot = prepare_run(model, make_config(eval_method="zero_shot"), data, SHAPE, run=0)
    assert prepared.stage == "images"
    torch.testing.assert_close(prepared.model.head.weight, zero_shot.model.head.weight)


def test_support_is_random_and_without_replacement():
    labels = torch.arange(12).repeat_interleave(10)
    first, second = (support_examples(labels, 50, seed=1, run=run) for run in (0, 1))
    assert len(set(first.tolist())) == 50
    assert set(first.tolist()) != set(second.tolist())
    assert len(support_examples(labels, 9000, seed=1, run=0)) == 120


def test_support_of_size_zero_is_the_first_example_of_each_class():
    assert support_examples(torch.arange(4).repeat_interleave(3), 0, seed=1, run=0).tolist() == [0, 3, 6, 9]


METRIC = {
    "encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": 4}, "classifier": "metric-classifier",
    "classifier_args": {"num_classes": 30},
}  # fmt: skip


@pytest.mark.parametrize("changes", [{"eval_method": "zero_shot"}, {"reinit_method": "lstsq"}], ids=str)
def test_least_squares_of_a_metric_head_is_refused(data, make_config, changes):
    model = build_model("classifier", METRIC, (1, 28, 28), seed=1)
    with pytest.raises(ConfigError, match=r"classifier\.metric is a metric layer: least squares"):
        prepare_run(model, make_config(**changes), data, SHAPE, run=0)


def test_a_metric_head_cannot_start_at_zero(make_config):
    model = build_model("classifier", METRIC, (1, 28, 28), seed=1)
    with pytest.raises(ConfigError, match=r"classifier\.metric is a metric layer, where zeros are like nothing"):
        check_head(model, make_config(reinit_method="zero"))


def test_a_head_that_stays_at_zero_is_refused(model, make_config):
    check_head(model, make_config(reinit_method="zero", opt_params=["rln", "fc"]))
    with pytest.raises(ConfigError, match=r"opt_params: an output layer of zeros .* add head"):
        check_head(model, make_config(reinit_method="zero", opt_params=["rln"]))


def test_a_head_that_stays_at_zero_is_found_before_anything_is_submitted(make_config):
    model = {"model": "sanml", "model_args": {"rln_chs": 3, "num_classes": 12}}
    flavor = make_config(reinit_method="zero", opt_params=["rln"], classes=3, dataset="glyphs")
    config = TrainConfig(dataset="glyphs", train_classes=10, eval={"olft": flavor}, **model)  # type: ignore[arg-type]
    [message] = find_problems(config)
    assert message.startswith("eval.olft: opt_params: an output layer of zeros")


def test_a_metric_head_starts_anew_with_its_first_temperature(data, make_config):
    model = build_model("classifier", METRIC, (1, 28, 28), seed=1)
    with torch.no_grad():
        model.get_parameter("classifier.metric.temperature").fill_(3)
    prepared = prepare_run(model, make_config(), data, SHAPE, run=0)
    assert changed(prepared.model, model) == {"classifier.metric.weight", "classifier.metric.temperature"}
    assert prepared.model.get_parameter("classifier.metric.temperature") == 10
    kept = prepare_run(model, make_config(reinit_params="classifier.metric.weight"), data, SHAPE, run=0)
    assert kept.model.get_parameter("classifier.metric.temperature") == 3


def test_a_batch_norm_made_anew_forgets_its_running_statistics(data, make_config):
    args = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": 4, "norm_type": "bn"}}
    model = build_model("classifier", args, (1, 28, 28), seed=1)
    model(torch.rand(4, 1, 28, 28))
    kept = prepare_run(model, make_config(), data, SHAPE, run=0).model
    renewed = prepare_run(model, make_config(reinit_params="all"), data, SHAPE, run=0).model
    mean, variance = "encoder.block1.norm.running_mean", "encoder.block1.norm.running_var"
    assert torch.equal(kept.get_buffer(mean), model.get_buffer(mean))
    assert renewed.get_buffer(mean).eq(0).all()
    assert renewed.get_buffer(variance).eq(1).all()


def centred_channels(images: int) -> torch.Tensor:
    """Return float32 features of which three at a time add up to 6 but for rounding, as InstanceNorms make."""
    raw = torch.randn(images, 40, 3, generator=torch.Generator().manual_seed(0))
    return ((raw - raw.mean(dim=2, keepdim=True)) / raw.std(dim=2, keepdim=True) + 2).flatten(1)


def solve_head(head: nn.Linear, features: torch.Tensor, labels: torch.Tensor) -> None:
    set_head(head, *solve(features, nn.functional.one_hot(labels)))


def test_rounding_errors_of_features_are_not_fitted():
    features, labels = centred_channels(400), torch.arange(8).repeat(50)
    head = nn.Linear(120, 8)
    solve_head(head, features, labels)
    assert head.weight.abs().max() < 0.1  # Without a cut: 1e4 and more, and float32 logits that mean nothing.
    exact = lstsq_by_numpy(features[:, torch.arange(120) % 3 > 0].double(), labels, 8)
    expected = features[:, torch.arange(120) % 3 > 0].double().numpy() @ exact[:-1] + exact[-1]
    np.testing.assert_allclose(head(features).detach().numpy(), expected, atol=1e-4)


def test_features_that_never_fire_get_no_weight():
    features = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    features[:, 2] = 0
    head = nn.Linear(6, 4)
    solve_head(head, features, torch.arange(20) % 4)
    assert head.weight[:, 2].abs().max() < 1e-12


def test_outputs_without_examples_are_zeroed():
    head = nn.Linear(6, 9)
    solve_head(head, torch.rand(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4)
    assert head.weight[4:].eq(0).all()
    assert head.bias[4:].eq(0).all()


def test_the_same_run_is_the_same_to_the_bit(model, data: ClassImages, make_config: Callable):
    config = make_config(eval_method="zero_shot")
    first, second = (prepare_run(model, config, data, SHAPE, run=2).model.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
