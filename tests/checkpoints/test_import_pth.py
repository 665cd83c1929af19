"""A plain state_dict of higherANML becomes the model it was, or an explanation."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from anml.checkpoints.import_pth import load_pth
from anml.errors import CheckpointError, ConfigError
from anml.models import build_model
from anml.models.meta_model import MetaModel

ANML = {"rln_chs": 3, "nm_chs": 2, "num_classes": 5}
ENCODER = {"rln_chs": 3, "nm_chs": 2, "pool_nm_output": True}
SANML = {"rln_chs": 3, "num_classes": 5}
OML = {"num_filters": 3, "hidden": 4, "num_classes": 5}


def write(path: Path, model: str, args: dict[str, Any], size: int = 28, channels: int = 1, **options: Any) -> MetaModel:
    """Write a model's state_dict and return the model."""
    built = build_model(model, args, (channels, size, size), seed=1)
    torch.save(built.state_dict(), path, **options)
    return built


@pytest.mark.parametrize(
    ("model", "args", "size"),
    [
        ("anml", ANML, 28),
        ("anml", {**ANML, "pool_nm_output": True}, 28),
        ("anml", {**ANML, "pool_rln_output": True}, 28),
        ("anml", {**ANML, "pool_rln_output": True, "pool_nm_output": True}, 28),
        ("anml", {**ANML, "pool_nm_output": True}, 84),
        ("anml", {**ANML, "num_blocks": 2}, 28),
        ("sanml", SANML, 28),
        ("sanml", {**SANML, "pool_rln_output": True, "num_blocks": 4}, 84),
        ("oml", OML, 84),
        ("classifier", {"encoder": "anml-encoder", "encoder_args": ENCODER, "classifier_args": {"num_classes": 5}}, 28),
    ],
    ids=str,
)
def test_a_model_is_rebuilt_from_its_shapes(tmp_path: Path, model: str, args: dict[str, Any], size: int) -> None:
    written = write(tmp_path / "net-29999.pth", model, args, size)
    loaded, card = load_pth(tmp_path / "net-29999.pth")
    assert (card.model, card.image_shape, card.step, card.display_name) == (model, (1, size, size), 29999, "net")
    images = torch.rand(2, 1, size, size)
    assert torch.equal(loaded(images), written(images))


def test_the_name_of_the_published_checkpoint_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "256_112_2304_ANML-29999.pth"
    write(file, "anml", {"rln_chs": 256, "nm_chs": 112})
    loaded, card = load_pth(file)
    assert (card.model_args["rln_chs"], card.model_args["nm_chs"], loaded.head.in_features) == (256, 112, 2304)
    assert not card.model_args["pool_nm_output"]
    assert (card.dataset, card.display_name, card.step) == ("omniglot", "256_112_2304_ANML", 29999)


def test_a_name_that_says_other_sizes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "3_4_27_ANML-10.pth", "anml", ANML)
    with pytest.raises(CheckpointError, match=r"the name says 3_4_27 \(RLN, NM, features\), the tensors are 3_2_27"):
        load_pth(tmp_path / "3_4_27_ANML-10.pth")


def test_the_older_format_of_torch_is_read(tmp_path: Path) -> None:
    written = write(tmp_path / "old.pth", "sanml", SANML, _use_new_zipfile_serialization=False)
    loaded, card = load_pth(tmp_path / "old.pth")
    assert card.step == 0
    assert torch.equal(loaded.head.weight, written.head.weight)


def test_oml_has_other_names_in_higheranml(tmp_path: Path) -> None:
    written = build_model("oml", OML, (1, 84, 84), seed=1)
    names = {f"rln.{2 * block}.": f"rln.{block}.0." for block in range(6)}
    theirs = {}
    for name, tensor in written.state_dict().items():
        prefix, part = name.rsplit(".", 1)
        theirs[names.get(f"{prefix}.", f"{prefix}.") + part] = tensor
    theirs |= {"output_layer.weight": written.head.weight, "output_layer.bias": written.head.bias}
    assert "rln.5.0.weight" in theirs
    torch.save(theirs, tmp_path / "oml-1-84-84-25000.pth")
    loaded, card = load_pth(tmp_path / "oml-1-84-84-25000.pth")
    assert (card.model, card.step) == ("oml", 25000)
    images = torch.rand(2, 1, 84, 84)
    assert torch.equal(loaded(images), written(images))


@pytest.mark.parametrize(("model", "args"), [("anml", {**ANML, "pool_nm_output": True}), ("sanml", SANML)])
def test_later_networks_of_higheranml_number_their_layers(tmp_path: Path, model: str, args: dict[str, Any]) -> None:
    written = build_model(model, args, (1, 28, 28), seed=1)
    theirs = {}
    for name, tensor in written.state_dict().items():
        for number, (part, layer) in itertools.product(range(3), (("conv", 0), ("norm", 1))):
            name = name.replace(f"convBlock{number + 1}.{part}.", f"encoder.{number}.{layer}.")
        theirs[name] = tensor
    assert "rln.encoder.2.1.bias" in theirs
    torch.save(theirs, tmp_path / "net-1-28-28-25000.pth")
    loaded, card = load_pth(tmp_path / "net-1-28-28-25000.pth")
    images = torch.rand(2, 1, 28, 28)
    assert card.model == model
    assert torch.equal(loaded(images), written(images))


CONVNET = {"num_blocks": 3, "num_filters": [3], "padding": [0], "pool_size": [2, 2, 0]}
DEEP = {"num_blocks": 4, "num_filters": [3], "num_conv_per_block": [2]}
STRIDED = {
    "num_blocks": 6,
    "num_filters": 3,
    "stride": [2, 1, 2, 1, 2, 2],
    "padding": 0,
    "norm_type": None,
    "pool_size": 0,
}
MLP = {"classifier": "mlp-classifier", "classifier_args": {"num_classes": 5, "hidden_layers": 4}}


def classifier(encoder: str, encoder_args: dict[str, Any], **head: Any) -> dict[str, Any]:
    return {"encoder": encoder, "encoder_args": encoder_args, "classifier_args": {"num_classes": 5}} | head


# Patterns of our names, and theirs.
EARLIER = [(r"encoder\.block(\d)\.", lambda m: f"encoder.encoder.{int(m[1]) - 1}.")]
LATER = [(r"encoder\.block(\d)\.(conv|norm)\.", r"encoder.encoder.block\1.\g<2>0."),
         (r"encoder\.block(\d)\.(conv|norm)2\.", r"encoder.encoder.block\1.\g<2>1.")]  # fmt: skip
RESNET = [
    (r"encoder\.stem\.", "encoder."),
    (r"stage(\d)\.block(\d)\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}."),
    (r"stage(\d)\.", r"layer\1."),
    (r"body\.", ""),
    (r"shortcut\.conv1", "downsample.0"),
    (r"shortcut\.norm1", "downsample.1"),
    (r"norm(\d)", r"bn\1"),
]
METRIC = [(r"classifier\.metric\.weight", "classifier.proto"), (r"classifier\.metric\.temperature", "classifier.temp")]
OTHERS: dict[str, tuple[str, dict[str, Any], tuple[int, int], list[tuple[str, Any]]]] = {
    "later oml": ("oml", OML, (1, 84), [(r"rln\.(\d+)\.", lambda m: f"rln.blocks.{int(m[1]) // 2}.conv.")]),
    "sanml, 30 pixels": ("classifier", classifier("convnet", CONVNET), (1, 30), EARLIER),
    "sanml, 84 pixels": ("classifier", classifier("convnet", DEEP | {"num_conv_per_block": 1}), (1, 84), LATER),
    "two convolutions": ("classifier", classifier("convnet", DEEP), (1, 84), LATER),
    "oml of a classifier": ("classifier", classifier("convnet", STRIDED, **MLP), (1, 84), EARLIER),
    "resnet18, cosine": (
        "classifier", classifier("resnet18", {"width": 2}, classifier="metric-classifier"), (3, 84), RESNET + METRIC
    ),
    "resnet50": ("classifier", classifier("resnet50", {"width": 2}), (3, 84), RESNET),
    "resnet12": ("classifier", classifier("resnet12", {"channels": [2, 3, 4, 5]}), (3, 84), RESNET),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_classifiers_and_later_networks_have_other_names_in_higheranml(tmp_path: Path, kind: str) -> None:
    model, args, (channels, size), names = OTHERS[kind]
    written = build_model(model, args, (channels, size, size), seed=1).eval()
    state = written.state_dict()
    for pattern, theirs in names:
        state = {re.sub(pattern, theirs, name): tensor for name, tensor in state.items()}
    assert not any(re.search(r"rln\.\d|\.block\d\.(conv|norm)2?\.|stage|stem|body|metric", name) for name in state)
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, tmp_path / "a.pth"
    )
    loaded, card = load_pth(tmp_path / "a.pth", dataset="omniglot" if channels == 1 else "mini-imagenet", im_size=size)
    assert card.model == model
    images = torch.rand(2, channels, size, size)
    assert torch.equal(loaded.eval()(images), written(images))


def test_a_convnet_whose_padding_may_be_one_of_two_must_be_told(tmp_path: Path) -> None:
    args = classifier("convnet", CONVNET)
    written = write(tmp_path / "a.pth", "classifier", args)
    with pytest.raises(ConfigError, match=r"pth_args\.encoder_args.*'padding': \[1\].*'padding': \[0\]"):
        load_pth(tmp_path / "a.pth")
    loaded, _ = load_pth(tmp_path / "a.pth", model_args={"encoder_args": {"padding": 0, "pool_size": [2, 2, 0]}})
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded(images), written(images))


def test_an_image_size_that_is_given_is_used(tmp_path: Path) -> None:
    file = tmp_path / "sanml-1.pth"
    write(file, "sanml", SANML, size=29)  # 29 pixels give the shapes of 28.
    assert load_pth(file)[1].image_shape == (1, 28, 28)
    assert load_pth(file, im_size=29)[1].image_shape == (1, 29, 29)
    with pytest.raises(CheckpointError, match=r"not a complete ANML, SANML or OML, .* for images of 50 pixels"):
        load_pth(file, im_size=50)


def test_images_of_other_channels_need_their_data_set_named(tmp_path: Path) -> None:
    write(tmp_path / "sanml-1.pth", "sanml", SANML, channels=3)
    with pytest.raises(ConfigError, match="made for images of 3 channels; name the data set"):
        load_pth(tmp_path / "sanml-1.pth")


def test_a_model_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    state = build_model("anml", ANML, (1, 28, 28), seed=1).state_dict()
    state["nm.convBlock2.norm.bias"][1] = torch.nan
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: nm\.convBlock2\.norm\.bias .* not finite"):
        load_pth(tmp_path / "a.pth")


def test_a_missing_tensor_is_told(tmp_path: Path) -> None:
    state = build_model("anml", ANML, (1, 28, 28), seed=1).state_dict()
    del state["nm.convBlock2.norm.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"not a complete ANML, SANML or OML, .* for images of 28 or 84 pixels"):
        load_pth(tmp_path / "a.pth")


class Surprise:
    """What a hostile file may hold: code that runs when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"layer1.weight": torch.zeros(2)},
            r"no state_dict of ANML, SANML, OML or a classifier; it holds layer1\.weight$",
        ),
        ({}, "no state_dict of ANML, SANML, OML or a classifier; it holds nothing"),
        ({"rln.convBlock1.conv.weight": torch.zeros(3, 1, 3, 3)}, "not a complete ANML"),
        ({"pn.2.weight": torch.zeros(3), "rln.convBlock1.conv.weight": torch.zeros(3, 1, 3, 3)}, "not a complete ANML"),
        ({"fc.weight": torch.tensor(1.0), "rln.convBlock1.conv.weight": torch.zeros(3, 1, 3, 3)}, "not a complete"),
        ({"source": "import os", "state": {}}, "holds something else than a state_dict"),
        (torch.zeros(3), "holds something else than a state_dict"),
        ({"a": Surprise()}, "cannot be read as a state_dict"),
    ],
)
def test_what_is_no_state_dict_is_explained(tmp_path: Path, content: Any, message: str, capsys) -> None:
    torch.save(content, tmp_path / "256_a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_pth(tmp_path / "256_a.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("old_format", [True, False])
def test_a_damaged_file_is_explained(tmp_path: Path, old_format: bool) -> None:
    file = tmp_path / "a.pth"
    write(file, "sanml", SANML, _use_new_zipfile_serialization=not old_format)
    content = file.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2], content[:40], content[30:]):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.pth: cannot be read as a state_dict"):
            load_pth(file)
