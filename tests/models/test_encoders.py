"""Encoders of a classifier: blocks of a convnet, residual networks and VGG, written out or counted."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, leaky_relu, max_pool2d

from anml.config.model_args import ClassifierArgs
from anml.errors import ConfigError
from anml.models import build_model
from anml.models.encoders import Classifier
from anml.models.meta_model import MetaModel
from tests.models.test_models import LARGE, SHAPE, sizes


def small_encoder(encoder: str, **args: Any) -> MetaModel:
    """A residual encoder without norms, so that convolutions are all there is to write out; in float64."""
    return build_model(
        "classifier", {"encoder": encoder, "encoder_args": {"norm_type": None} | args}, LARGE, seed=1
    ).double()


def convolve(net: nn.Module, name: str, maps: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight, bias = net.get_parameter(f"{name}.weight"), net.get_parameter(f"{name}.bias")
    return conv2d(maps, weight, bias, stride=stride, padding=weight.shape[-1] // 2)


def test_a_list_has_one_value_per_block():
    args = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": [4, 8], "stride": [2, 1]}}
    found = sizes(build_model("classifier", args, SHAPE, seed=1))
    assert found["encoder.block1.conv.weight"] == (4, 1, 3, 3)
    assert found["encoder.block2.conv.weight"] == (8, 4, 3, 3)
    assert found["classifier.linear.weight"] == (1000, 8 * 3 * 3)  # 28 -> 14 -> 7 -> 7 -> 3.


def test_kernels_paddings_and_pools_may_differ_from_block_to_block():
    args = {
        "num_blocks": 3,
        "num_filters": 4,
        "kernel_size": [5, 3, 3],
        "padding": [0, 1, 0],
        "pool_size": [2, None, 3],
    }
    found = sizes(build_model("classifier", {"encoder": "convnet", "encoder_args": args}, SHAPE, seed=1))
    assert [found[f"encoder.block{i}.conv.weight"][2:] for i in (1, 2, 3)] == [(5, 5), (3, 3), (3, 3)]
    assert found["classifier.linear.weight"] == (1000, 4 * 3 * 3)  # 28 -> 24 -> 12, -> 12, -> 10 -> 3.


def test_norms_may_differ_from_block_to_block():
    args = {"encoder": "convnet", "encoder_args": {"num_blocks": 3, "num_filters": 4, "norm_type": ["bn", None, "in"]}}
    model = build_model("classifier", args, SHAPE, seed=1)
    kinds = [type(dict(model.get_submodule(f"encoder.block{i}").named_children()).get("norm")) for i in (1, 2, 3)]
    assert kinds == [nn.BatchNorm2d, type(None), nn.InstanceNorm2d]


@pytest.mark.parametrize("norm", ["in", "bn", "gn", None])
def test_every_norm_works_at_any_width(norm):
    args = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": [5, 48], "norm_type": norm}}
    assert build_model("classifier", args, SHAPE, seed=1)(torch.rand(2, *SHAPE)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("encoder", "args", "width", "convolutions"),
    [
        ("resnet12", {}, 512, 16),
        ("resnet12", {"channels": [64, 160, 320, 640]}, 640, 16),
        ("resnet18", {}, 512, 20),
        ("resnet34", {}, 512, 36),
    ],
)
def test_residual_networks_are_the_known_ones(encoder, args, width, convolutions):
    # The names count no shortcuts, which are 4 convolutions of resnet12 and 3 of the others.
    model = build_model("classifier", {"encoder": encoder, "encoder_args": args}, LARGE, seed=1)
    assert model.head.in_features == width
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == convolutions


@pytest.mark.parametrize(
    ("encoder", "millions"),
    [
        ("resnet18", 11.689512), ("resnet50", 25.557032), ("resnet101", 44.549160), ("resnet152", 60.192808),
        ("resnext50_32x4d", 25.028904), ("resnext101_32x8d", 88.791336), ("wide_resnet50_2", 68.883240),
        ("wide_resnet101_2", 126.886696), ("vgg16_encoder", 39.803688), ("vgg16_bn_encoder", 39.812136),
    ],
)  # fmt: skip
def test_an_encoder_has_as_many_parameters_as_published(encoder, millions):
    """With 1000 outputs: a Linear layer, which for VGG's 25,088 features is not the published head."""
    with torch.device("meta"):
        model = Classifier(ClassifierArgs(encoder=encoder), (3, 224, 224))
    assert sum(p.numel() for p in model.parameters()) == round(millions * 1e6)


def test_a_bottleneck_is_three_convolutions_with_its_stride_in_the_middle():
    net = small_encoder("resnext50_32x4d", width=16)
    maps = torch.randn(2, 64, 9, 9, dtype=torch.float64)
    block, grouped = "encoder.stage2.block1", net.get_submodule("encoder.stage2.block1.body.conv2")
    assert isinstance(grouped, nn.Conv2d)
    first = convolve(net, f"{block}.body.conv1", maps).relu()
    second = conv2d(first, grouped.weight, grouped.bias, stride=2, padding=1, groups=32).relu()
    total = convolve(net, f"{block}.body.conv3", second) + convolve(net, f"{block}.shortcut.conv1", maps, stride=2)
    torch.testing.assert_close(net.get_submodule(block)(maps), total.relu())


def test_a_block_of_a_convnet_may_have_several_convolutions():
    args = {"num_blocks": 2, "num_conv_per_block": [2, 1], "num_filters": 4, "norm_type": None}
    net = build_model("classifier", {"encoder": "convnet", "encoder_args": args}, SHAPE, seed=1).double()
    images = torch.randn(2, *SHAPE, dtype=torch.float64)
    maps = max_pool2d(
        convolve(net, "encoder.block1.conv2", convolve(net, "encoder.block1.conv", images).relu()).relu(), 2
    )
    maps = max_pool2d(convolve(net, "encoder.block2.conv", maps).relu(), 2)
    torch.testing.assert_close(net.encode(images), maps.flatten(1))


def test_resnet12_is_three_convolutions_a_shortcut_and_a_pool_per_stage():
    net = small_encoder("resnet12", channels=[2, 3, 4, 5])
    images = maps = torch.randn(2, *LARGE, dtype=torch.float64)
    for stage in (f"encoder.stage{i}" for i in (1, 2, 3, 4)):
        first = leaky_relu(convolve(net, f"{stage}.body.conv1", maps), 0.1)
        second = leaky_relu(convolve(net, f"{stage}.body.conv2", first), 0.1)
        total = convolve(net, f"{stage}.body.conv3", second) + convolve(net, f"{stage}.shortcut.conv1", maps)
        maps = max_pool2d(leaky_relu(total, 0.1), 2)
    assert maps.shape == (2, 5, 5, 5)
    torch.testing.assert_close(net.encode(images), maps.mean(dim=(2, 3)))


@pytest.mark.parametrize(("encoder", "blocks"), [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))])
def test_later_stages_of_a_resnet18_halve_the_map_and_widen_at_their_first_block(encoder, blocks):
    net = small_encoder(encoder, width=2)
    images = torch.randn(2, *LARGE, dtype=torch.float64)
    maps = max_pool2d(convolve(net, "encoder.stem.conv1", images, stride=2).relu(), 3, stride=2, padding=1)
    for i, count in enumerate(blocks, 1):
        for block in (f"encoder.stage{i}.block{j}" for j in range(1, count + 1)):
            narrows = i > 1 and block.endswith("block1")
            first = convolve(net, f"{block}.body.conv1", maps, stride=1 + narrows).relu()
            shortcut = convolve(net, f"{block}.shortcut.conv1", maps, stride=2) if narrows else maps
            maps = (convolve(net, f"{block}.body.conv2", first) + shortcut).relu()
    assert maps.shape == (2, 16, 3, 3)
    torch.testing.assert_close(net.encode(images), maps.mean(dim=(2, 3)))


def test_a_residual_block_adds_its_input():
    model = build_model("classifier", {"encoder": "resnet18", "encoder_args": {"width": 2}}, LARGE, seed=1).eval()
    block = model.get_submodule("encoder.stage1.block1")
    maps = torch.rand(2, 2, 21, 21)
    assert torch.equal(block(maps), torch.relu(block.get_submodule("body")(maps) + maps))


@pytest.mark.parametrize(("encoder", "size"), [("resnet12", 15), ("resnet18", 28)])
def test_a_batch_norm_never_sees_a_single_pixel(encoder, size):
    with pytest.raises(ConfigError, match="BatchNorm would see a single pixel"):
        build_model("classifier", {"encoder": encoder}, (3, size, size), seed=1)
