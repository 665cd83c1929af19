"""Configs name parameters by `all`, `head`, or a prefix."""

import pytest
import torch

from anml.errors import ConfigError
from anml.models import build_model
from anml.models.meta_model import MetaModel, belongs_to, check_output_layer, find_not_finite, select_names


def make_classifier() -> MetaModel:
    args = {
        "encoder": "anml-encoder",
        "encoder_args": {"rln_chs": 2, "nm_chs": 2},
        "classifier": "mlp-classifier",
        "classifier_args": {"hidden_layers": [4, 4], "num_classes": 5},
    }
    return build_model("classifier", args, (1, 28, 28), seed=1)


def make_oml() -> MetaModel:
    return build_model("oml", {"num_filters": 2, "strides": [2, 2], "hidden": 4}, (1, 28, 28), seed=1)


def test_all_is_every_parameter_in_order():
    model = make_classifier()
    assert select_names(model, ["all"]) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize(
    ("make", "names"), [(make_classifier, "classifier.mlp.4"), (make_oml, "pn.2")], ids=["classifier", "oml"]
)
def test_head_is_the_output_layer_whatever_it_is_called(make, names):
    assert select_names(make(), ["head"]) == [f"{names}.weight", f"{names}.bias"]


def test_a_prefix_ends_at_a_dot():
    args = {"encoder": "convnet", "encoder_args": {"num_blocks": 11, "num_filters": [2], "pool_size": [0]}}
    model = build_model("classifier", args, (1, 28, 28), seed=1)
    names = [f"encoder.block1.{part}" for part in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")]
    assert select_names(model, ["encoder.block1"]) == names  # And nothing of block10 and block11.


def test_several_selectors_keep_the_models_order():
    model = make_classifier()
    names = [n for n in select_names(model, ["all"]) if n.startswith(("encoder.rln", "classifier.mlp.2"))]
    assert select_names(model, ["classifier.mlp.2", "encoder.rln", "encoder.rln.convBlock1"]) == names


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"no parameter is called 'fc'; this model has: all, head, rln, rln\.0"):
        select_names(make_oml(), ["rln", "fc"])


def test_the_output_layer_goes_by_its_name_or_head():
    check_output_layer(make_oml(), "head")
    check_output_layer(make_oml(), "pn.2")
    with pytest.raises(ConfigError, match=r"'pn\.0' is not this model's output layer; it is 'pn\.2'"):
        check_output_layer(make_oml(), "pn.0")


def test_belonging_is_not_a_matter_of_letters():
    assert belongs_to("fc.weight", "fc")
    assert not belongs_to("fc2.weight", "fc")
    assert not belongs_to("fc.weight", None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_found_wherever_it_is(value, dtype):
    for size, at in ((1, 0), (100, 0), (100, 63), (70_001, 70_000)):
        tensors = {"counter": torch.tensor(3), "good": torch.ones(2, dtype=dtype), "bad": torch.ones(size, dtype=dtype)}
        assert find_not_finite(tensors) == ""
        tensors["bad"][at] = value
        assert find_not_finite(tensors) == "bad"
