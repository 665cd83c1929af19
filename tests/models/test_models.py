"""The networks: names and sizes of the published ones, starts that a seed decides alone, halves that fit together."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, instance_norm, max_pool2d

from anml.config.model_args import PARTS
from anml.errors import ConfigError
from anml.models import build_model
from anml.models.blocks import automatic_blocks, conv_stack, output_width
from anml.models.meta_model import MetaModel
from anml.plugins import load_object

SHAPE = (1, 28, 28)
LARGE = (3, 84, 84)
CONVNET = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": [4]}}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "anml": ("anml", {"rln_chs": 4, "nm_chs": 3, "num_classes": 10}),
    "nonml": ("nonml", {"rln_chs": 4, "nm_chs": 3, "num_classes": 10}),
    "sanml": ("sanml", {"rln_chs": 4, "num_classes": 10}),
    "oml": ("oml", {"num_filters": 4, "strides": [2, 1, 2], "hidden": 8, "num_classes": 10}),
    "convnet, linear": ("classifier", CONVNET | {"classifier_args": {"num_classes": 10}}),
    "convnet, mlp": (
        "classifier",
        CONVNET | {"classifier": "mlp-classifier", "classifier_args": {"num_classes": 10, "hidden_layers": [8]}},
    ),
    "convnet, cosine": (
        "classifier",
        CONVNET | {"classifier": "metric-classifier", "classifier_args": {"num_classes": 10}},
    ),
    "resnet12": (
        "classifier",
        {
            "encoder": "resnet12",
            "encoder_args": {"channels": [3, 4, 5, 6], "norm_type": "gn"},
            "classifier_args": {"num_classes": 10},
        },
    ),
    "anml-encoder": (
        "classifier",
        {
            "encoder": "anml-encoder",
            "encoder_args": {"rln_chs": 4, "nm_chs": 3},
            "classifier_args": {"num_classes": 10},
        },
    ),
}


@pytest.fixture(params=SMALL)
def model(request: pytest.FixtureRequest) -> MetaModel:
    name, args = SMALL[request.param]
    return build_model(name, args, SHAPE, seed=1)


def sizes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_anml_is_the_published_one():
    blocks = {}
    for network, width in (("rln", 256), ("nm", 112)):
        for number, channels in ((1, 1), (2, width), (3, width)):
            block = f"{network}.convBlock{number}"
            blocks |= {f"{block}.conv.weight": (width, channels, 3, 3)}
            blocks |= {f"{block}.{part}": (width,) for part in ("conv.bias", "norm.weight", "norm.bias")}
    layers = {"nm.fc.weight": (2304, 1008), "nm.fc.bias": (2304,), "fc.weight": (1000, 2304), "fc.bias": (1000,)}
    assert sizes(build_model("anml", {}, SHAPE, seed=1)) == blocks | layers


def test_the_later_nm_is_pooled():
    model = build_model("anml", {"rln_chs": 8, "nm_chs": 112, "pool_nm_output": True}, SHAPE, seed=1)
    assert sizes(model)["nm.fc.weight"] == (8 * 9, 112)


def test_sanml_is_anml_without_neuromodulation():
    anml, sanml = (build_model(name, {"rln_chs": 4}, SHAPE, seed=1) for name in ("anml", "sanml"))
    assert sizes(sanml) == {name: size for name, size in sizes(anml).items() if not name.startswith("nm.")}


def test_oml_has_six_convolutions_and_two_fast_layers():
    found = sizes(build_model("oml", {"num_filters": 16, "hidden": 32}, (1, 84, 84), seed=1))
    assert [size for name, size in found.items() if name.startswith("rln") and "weight" in name] == [
        (16, 1, 3, 3), *[(16, 16, 3, 3)] * 5,
    ]  # fmt: skip
    assert found["pn.0.weight"] == (32, 16 * 3 * 3)  # 84 -> 41 -> 39 -> 19 -> 17 -> 8 -> 3.
    assert found["pn.2.weight"] == (1000, 32)


def test_the_gate_multiplies_the_features():
    model = build_model("anml", {"rln_chs": 4, "nm_chs": 3}, SHAPE, seed=1)
    images = torch.rand(3, *SHAPE)
    gate = model.modulate(images)
    assert gate is not None
    assert torch.equal(model.encode(images), model.get_submodule("rln")(images) * gate)
    assert gate.min() > 0
    assert gate.max() < 1


def test_anml_is_convolution_norm_relu_and_pool_and_a_sigmoid_gate():
    model = build_model("anml", {"rln_chs": 3, "nm_chs": 2, "num_classes": 10}, SHAPE, seed=1).double()
    weights = dict(model.named_parameters())
    images = torch.rand(4, *SHAPE, dtype=torch.float64)

    def features(network: str) -> torch.Tensor:
        maps = images
        for number in (1, 2, 3):
            conv, norm = (f"{network}.convBlock{number}.{part}" for part in ("conv", "norm"))
            maps = conv2d(maps, weights[f"{conv}.weight"], weights[f"{conv}.bias"])
            maps = instance_norm(maps, weight=weights[f"{norm}.weight"], bias=weights[f"{norm}.bias"]).relu()
            maps = max_pool2d(maps, 2) if number < 3 else maps
        return maps.flatten(1)

    gate = (features("nm") @ weights["nm.fc.weight"].T + weights["nm.fc.bias"]).sigmoid()
    logits = (features("rln") * gate) @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(model(images), logits)


def test_halves_make_the_whole(model):
    images = torch.rand(3, *SHAPE)
    whole = model(images)
    assert whole.shape == (3, 10)
    assert torch.equal(model.classify(model.encode(images)), whole)
    assert torch.equal(model(model(images, part="encode"), part="classify"), whole)
    assert torch.equal(model(images, gate=model(images, part="modulate")), whole)


def test_prefixes_tell_what_the_halves_use(model):
    images = torch.rand(2, *SHAPE)
    parts = {"classify": model.head_prefix} | ({"modulate": model.gate_prefix} if model.gate_prefix else {})
    for part, prefix in parts.items():
        inputs = model.encode(images).detach() if part == "classify" else images
        model.zero_grad()
        model(inputs, part=part).sum().backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == {
            n for n, _ in model.named_parameters() if n.startswith(f"{prefix}.")
        }


@pytest.mark.parametrize("kind", [*SMALL, "batch norm"])
def test_a_seed_decides_every_value_alone(kind):
    name, args = SMALL.get(kind, ("classifier", CONVNET | {"encoder_args": {"num_blocks": 2, "norm_type": "bn"}}))
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        states.append(build_model(name, args, SHAPE, seed=7).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_another_seed_starts_elsewhere():
    first, second = (build_model("sanml", {"rln_chs": 4}, SHAPE, seed).head.weight for seed in (1, 2))
    assert (first - second).abs().max() > 0.01


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build_model("anml", {"rln_chs": 4, "nm_chs": 3}, SHAPE, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_convolutions_start_kaiming_normal_and_layers_uniform():
    state = build_model("sanml", {"rln_chs": 64}, SHAPE, seed=1).state_dict()
    conv, layer = state["rln.convBlock2.conv.weight"], state["fc.weight"]
    assert abs(conv.std().item() / (2 / 576) ** 0.5 - 1) < 0.02
    assert abs(layer.abs().max().item() * 576**0.5 - 1) < 1e-3
    assert abs(layer.std().item() * (3 * 576) ** 0.5 - 1) < 0.02
    assert state["rln.convBlock1.norm.weight"].eq(1).all()
    assert state["rln.convBlock1.norm.bias"].eq(0).all()


def test_measuring_a_network_does_not_train_its_norms():
    args = CONVNET | {"encoder_args": {"num_blocks": 2, "norm_type": "bn"}}
    model = build_model("classifier", args, SHAPE, seed=1)
    state = model.state_dict()
    assert state["encoder.block1.norm.running_mean"].eq(0).all()
    assert state["encoder.block1.norm.num_batches_tracked"] == 0
    assert model.training


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("anml", {"rln_chs": 4, "nm_chs": 3, "num_blocks": 5}, 28),
        # The last norm would see a single pixel, which it normalises to nothing.
        ("sanml", {"rln_chs": 4, "num_blocks": 3}, 20),
        ("oml", {"num_filters": 4}, 28),
        ("classifier", {"encoder": "convnet", "encoder_args": {"num_blocks": 6}}, 28),
    ],
)
def test_images_too_small_for_a_network_are_a_config_error(name, args, size):
    with pytest.raises(ConfigError, match=f"does not fit images of {size}x{size} pixels"):
        build_model(name, args, (1, size, size), seed=1)


def test_nonml_appends_the_gate():
    model = build_model("nonml", {"rln_chs": 4, "nm_chs": 3}, SHAPE, seed=1)
    images = torch.rand(3, *SHAPE)
    features, gate = model.encode(images), model.modulate(images)
    assert gate is not None
    assert torch.equal(features, torch.cat([model.get_submodule("rln")(images), gate], dim=1))
    assert torch.equal(gate, torch.sigmoid(model.get_submodule("nm")(images)))


def test_nonml_is_anml_with_twice_the_features():
    anml, nonml = (sizes(build_model(name, {"rln_chs": 4, "nm_chs": 3}, SHAPE, seed=1)) for name in ("anml", "nonml"))
    assert nonml == anml | {"fc.weight": (1000, 2 * 36)}


@pytest.mark.parametrize(
    ("size", "blocks", "pool", "edge"),
    [(28, 3, False, 3), (84, 4, True, 3), (32, 3, False, 4), (64, 4, False, 4), (105, 4, True, 4), (224, 6, False, 3)],
)
def test_blocks_follow_from_the_size(size, blocks, pool, edge):
    assert automatic_blocks(size) == (blocks, pool)
    assert conv_stack((1, size, size), 2, None, None)(torch.rand(1, 1, size, size)).shape == (1, 2 * edge**2)


def test_the_last_map_is_small_and_never_a_single_pixel():
    for size in range(8, 300):
        net = conv_stack((1, size, size), 1, None, None)
        assert 4 <= output_width(net, (1, size, size)) <= 16


@pytest.mark.parametrize("name", ["anml", "sanml"])
def test_large_images_make_as_many_features_as_small_ones(name):
    args = {"rln_chs": 256} | ({"nm_chs": 2} if name == "anml" else {})
    assert [build_model(name, args, shape, seed=1).head.in_features for shape in (SHAPE, LARGE)] == [2304, 2304]


def test_the_gate_follows_from_the_size_too():
    model = build_model("anml", {"rln_chs": 2, "nm_chs": 5}, LARGE, seed=1)
    assert sizes(model)["nm.fc.weight"] == (2 * 9, 5 * 9)


def test_what_is_said_goes_before_the_rule():
    args = {"rln_chs": 2, "num_blocks": 3}
    assert build_model("sanml", args, LARGE, seed=1).head.in_features == 2 * 17**2
    assert build_model("sanml", args | {"pool_rln_output": True}, LARGE, seed=1).head.in_features == 2 * 8**2
    assert build_model("sanml", {"rln_chs": 2, "pool_rln_output": False}, LARGE, seed=1).head.in_features == 2 * 6**2


def test_an_mlp_may_have_no_hidden_layer():
    head = {"classifier": "mlp-classifier", "classifier_args": {"num_classes": 10, "hidden_layers": None}}
    model = build_model("classifier", CONVNET | head, SHAPE, seed=1)
    assert (model.head_layer, model.head.in_features) == ("classifier.mlp.0", 4 * 7 * 7)


def metric_model(**args: Any) -> MetaModel:
    head = {"num_classes": 10} | args
    return build_model(
        "classifier", CONVNET | {"classifier": "metric-classifier", "classifier_args": head}, SHAPE, seed=1
    ).double()


@pytest.mark.parametrize("metric", ["cosine", "distance", "dot"])
def test_metric_logits_are_similarities_to_each_row(metric):
    model = metric_model(metric=metric, temperature=0.7)
    features = torch.randn(4, model.head.in_features, dtype=torch.float64)
    for x, logits in zip(features, model.classify(features), strict=True):
        for row, logit in zip(model.head.weight, logits, strict=True):
            dot, distance = x @ row, ((x - row) ** 2).sum()
            expected = {"dot": dot, "cosine": dot / x.norm() / row.norm(), "distance": -distance}
            torch.testing.assert_close(logit, 0.7 * expected[metric])


@pytest.mark.parametrize(
    ("args", "temperature"),
    [
        ({}, 10.0), ({"temperature": 3.0}, None), ({"temperature": 3.0, "learn_temperature": True}, 3.0),
        ({"learn_temperature": False}, None), ({"metric": "distance"}, None),
        ({"metric": "distance", "learn_temperature": True}, 1.0),
    ],
)  # fmt: skip
def test_a_temperature_is_learned_or_not(args, temperature):
    parameters = dict(metric_model(**args).named_parameters())
    assert ("classifier.metric.temperature" in parameters) == (temperature is not None)
    if temperature is not None:
        assert parameters["classifier.metric.temperature"] == temperature


def test_every_name_of_a_config_has_what_builds_it():
    missing = []
    for parts in PARTS.values():
        for name, part in parts.items():
            try:
                load_object(part.reference)
            except ConfigError as error:
                missing.append(f"{name}: {error}")
    assert not missing


OML_OR_RESNET: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "kaiming": ("oml", {"num_filters": 64, "hidden": 256, "num_classes": 100}, (1, 84, 84)),
    "fan_out": ("classifier", {"encoder": "resnet18", "encoder_args": {"width": 32}}, LARGE),
}


@pytest.mark.parametrize("how", OML_OR_RESNET)
def test_first_weights_are_drawn_as_the_authors_do(how):
    name, args, shape = OML_OR_RESNET[how]
    model = build_model(name, args, shape, seed=1, initialisation=how)  # type: ignore[arg-type]
    for layer in [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]:
        theirs = torch.empty_like(layer.weight)
        if isinstance(layer, nn.Conv2d) or how == "kaiming":
            nn.init.kaiming_normal_(theirs, mode="fan_out" if how == "fan_out" else "fan_in", nonlinearity="relu")
        else:
            nn.init.kaiming_uniform_(theirs, a=5**0.5)
        assert layer.weight.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
        if layer.bias is not None:
            assert (layer.bias.abs().max().item() == 0) == (how == "kaiming")
