"""One meta-update: lobotomy of the model itself, the episode's gradient, clipping, Adam."""

import copy
from typing import Any, get_args

import pytest
import torch
from torch import nn

from anml.config.model_args import MetricHeadArgs
from anml.config.training import LoboScale, TrainConfig
from anml.data.class_images import ClassImages
from anml.data.episodes import Episode, draw_episode
from anml.meta import make_engine
from anml.meta.outer_step import MetaStep, OuterStep, lobotomize
from anml.models import build_model
from anml.models.heads import MetricHead
from anml.models.meta_model import MetaModel, draw_kaiming, select_names
from anml.rng import torch_generator


def make_config(**changes: Any) -> TrainConfig:
    values = {
        "dataset": "omniglot",
        "model": "anml",
        "num_batches": 3,
        "remember_size": 5,
        "inner_params": ["rln", "fc"],
    }
    return TrainConfig(**(values | changes))


def make_model() -> MetaModel:
    return build_model("anml", {"rln_chs": 4, "nm_chs": 3, "num_classes": 9}, (1, 28, 28), seed=1).double()


@pytest.fixture(scope="module")
def data() -> ClassImages:
    generator = torch.Generator().manual_seed(0)
    return ClassImages(torch.randint(256, (8, 20, 1, 28, 28), dtype=torch.uint8, generator=generator), "noise")


def make_step(config: TrainConfig, model: MetaModel) -> MetaStep:
    return MetaStep(config, model, make_engine(config, model, select_names(model, config.inner_params))[0], seed=1)


def make_episode(data: ClassImages, config: TrainConfig, index: int) -> Episode:
    return draw_episode(data, config, seed=1, index=index, dtype=torch.float64)


def train_by_hand(model: MetaModel, config: TrainConfig, data: ClassImages, updates: int) -> None:
    """Do what an update is said to be, written out."""
    optimizer = torch.optim.Adam(model.parameters(), lr=config.outer_lr)
    engine, _ = make_engine(config, model, select_names(model, config.inner_params))
    for index in range(updates):
        episode = make_episode(data, config, index)
        row = draw_kaiming((1, 36), torch_generator(1, "lobotomy", index))
        with torch.no_grad():
            model.head.weight[episode.new_classes[0]] = row[0].double()
        gradients = engine.run(episode).gradients
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        scale = 1.0 if config.max_grad_norm is None else min(1.0, config.max_grad_norm / (norm.item() + 1e-6))
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name] * scale
        optimizer.step()


@pytest.mark.parametrize("max_grad_norm", [None, 0.05], ids=["free", "clipped"])
def test_updates_are_lobotomy_gradient_clipping_adam(data, max_grad_norm):
    config = make_config(max_grad_norm=max_grad_norm)
    found, expected = make_model(), make_model()
    step = make_step(config, found)
    for index in range(5):
        step.update(make_episode(data, config, index), index)
    train_by_hand(expected, config, data, 5)
    for name, parameter in found.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), rtol=0, atol=1e-12)


def test_gradients_of_any_strides_are_those_of_their_own_elements():
    config, found, expected = make_config(), make_model(), make_model()
    generator = torch.Generator().manual_seed(0)
    gradients = {n: torch.randn(p.shape, generator=generator).double() for n, p in found.named_parameters()}
    for model, strided in ((found, True), (expected, False)):
        step = OuterStep(config, model, seed=1)
        for _ in range(2):
            step.finish({n: g.T.contiguous().T if strided and g.dim() == 2 else g for n, g in gradients.items()})
    assert torch.equal(found.head.weight, expected.head.weight)


def test_gradients_are_clipped_to_their_common_norm(data):
    config, model = make_config(max_grad_norm=0.05), make_model()
    outcome = make_step(config, model).update(make_episode(data, config, 0), 0)
    norm = torch.stack([gradient.norm() for gradient in outcome.gradients.values()]).norm()
    assert norm.item() == pytest.approx(0.05, rel=1e-4)  # Torch adds 1e-6 to the norm it divides by.


def test_only_outer_parameters_are_updated(data):
    config, model = make_config(outer_params="nm", lobotomize=False), make_model()
    before = copy.deepcopy(model.state_dict())
    make_step(config, model).update(make_episode(data, config, 0), 0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    # Biases before an InstanceNorm have gradient zero: with some engines rounding noise moves them.
    assert {n for n in changed if not n.endswith("conv.bias")} == {
        n for n in before if n.startswith("nm.") and not n.endswith("conv.bias")
    }


def test_without_lobotomy_the_head_is_that_of_the_last_update(data):
    config, model = make_config(lobotomize=False, outer_params="nm"), make_model()
    before = model.head.weight.detach().clone()
    make_step(config, model).update(make_episode(data, config, 0), 0)
    assert torch.equal(model.head.weight, before)


def test_lobotomy_changes_the_weights_of_the_row_only():
    head = nn.Linear(50, 9)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    lobotomize(head, (4,), torch_generator(1, "lobotomy", 0))
    others = [row for row in range(9) if row != 4]
    assert torch.equal(head.weight[others], weight[others])
    assert torch.equal(head.bias, bias)
    assert (head.weight[4] - weight[4]).abs().min() > 0


def test_lobotomy_leaves_the_temperature_of_a_metric_head_alone():
    head = MetricHead(50, MetricHeadArgs(num_classes=9))
    nn.init.ones_(head.weight)
    lobotomize(head, (4,), torch_generator(1, "lobotomy", 0))
    assert (head.weight == 1).all(dim=1).tolist() == [row != 4 for row in range(9)]
    assert head.temperature == 10


def test_lobotomy_draws_kaiming_normal_of_one_row():
    head = nn.Linear(2304, 1000)
    lobotomize(head, tuple(range(100)), torch_generator(1, "lobotomy", 0))
    rows = head.weight[:100]
    expected = (2 / 2304) ** 0.5
    assert rows.std().item() == pytest.approx(expected, rel=0.01)
    assert abs(rows.mean().item()) < 0.01 * expected
    assert (rows.abs() < expected).double().mean().item() == pytest.approx(
        0.683, abs=0.005
    )  # A normal's, not a uniform's.


@pytest.mark.parametrize(("scale", "fan_in"), [("each_row", 2304), ("all_rows", 1000 * 2304)])
def test_the_scale_of_several_rows_is_kaiming_normal_of_each_or_of_all(scale: LoboScale, fan_in: int):
    head = nn.Linear(2304, 1000)
    lobotomize(head, tuple(range(1000)), torch_generator(1, "zap", 1), scale)
    generator = torch.Generator().manual_seed(0)
    expected = nn.init.kaiming_normal_(torch.empty(1, fan_in // 2304, 2304), generator=generator).std().item()
    assert head.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.002)
    assert head.weight.std().item() == pytest.approx(expected, rel=0.06)


def test_one_row_is_drawn_alike_at_either_scale():
    weights = []
    for scale in get_args(LoboScale):
        head = nn.Linear(50, 9)
        lobotomize(head, (4,), torch_generator(1, "lobotomy", 0), scale)
        weights.append(head.weight[4])
    assert torch.equal(*weights)


def test_lobotomies_differ_from_episode_to_episode(data):
    config, rows = make_config(outer_params="nm"), []
    for index in (0, 1):
        model = make_model()
        episode = make_episode(data, config, 0)
        make_step(config, model).update(episode, index)
        rows.append(model.head.weight[episode.new_classes[0]].detach())
    assert not torch.equal(rows[0], rows[1])


def test_uniform_sampling_lobotomizes_every_new_class(data):
    config, model = make_config(outer_params="nm", sample_method="uniform"), make_model()
    before = model.head.weight.detach().clone()
    episode = make_episode(data, config, 0)
    make_step(config, model).update(episode, 0)
    changed = (model.head.weight != before).any(dim=1).nonzero()[:, 0]
    assert tuple(changed.tolist()) == episode.new_classes
