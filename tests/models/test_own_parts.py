"""A config may name the user's own model, encoder or head: `./FILE.py:NAME` or `MODULE:NAME`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anml.checkpoints import ModelCard, load_model, save_checkpoint
from anml.config.load import load_train_config
from anml.config.model_args import complete_args
from anml.config.smoke_test import smoke_test
from anml.errors import CheckpointError, ConfigError
from anml.meta.adjoint import AdjointEngine
from anml.models import build_model
from anml.models.meta_model import belongs_to

SHAPE = (1, 28, 28)
NET = """
import torch
from torch import nn
from anml.models.meta_model import MetaModel


class MyNet(MetaModel):
    head_layer = head_prefix = "fc"

    def __init__(self, image_shape: tuple[int, int, int], width: int = 5, sizes: tuple[int, ...] = (3,),
                 num_classes: int = 1000):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(image_shape[0], width, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(width))
        self.encoder(torch.zeros(1, *image_shape))
        self.fc = nn.Linear(width, num_classes)

    def encode(self, images, gate=None):
        return self.encoder(images)

    def classify(self, features):
        return self.fc(features)
"""
WITH_RECORD = NET.replace(
    "image_shape: tuple[int, int, int], width: int = 5, sizes: tuple[int, ...] = (3,),\n"
    "                 num_classes: int = 1000",
    "args: MyArgs, image_shape",
)
WITH_RECORD = (
    WITH_RECORD.replace("width", "args.width")
    .replace("num_classes)", "args.num_classes)")
    .replace(
        "class MyNet", "class MyArgs(BaseModel):\n    width: int = 5\n    num_classes: int = 1000\n\n\nclass MyNet"
    )
)
WITH_RECORD = "from pydantic import BaseModel\n" + WITH_RECORD
ENCODER = """
from torch import nn


def vgg(image_shape, width: int = 4, depth: int = 1):
    return nn.Sequential(nn.Conv2d(image_shape[0], width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


class Cosine(nn.Module):
    def __init__(self, features, num_classes: int = 1000):
        super().__init__()
        self.out = nn.Linear(features, num_classes)

    def forward(self, features):
        return self.out(features)
"""


def config_problems(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "train.yml").write_text(f"dataset: glyphs\n{text}\n")
    with pytest.raises(ConfigError) as error:
        load_train_config(tmp_path / "train.yml")
    return list(error.value.problems)


@pytest.mark.parametrize("code", [NET, WITH_RECORD], ids=["signature", "record"])
def test_a_users_model_is_bound_built_and_loaded_again(tmp_path: Path, code: str) -> None:
    file = tmp_path / "my_net.py"
    file.write_text(code)
    (tmp_path / "train.yml").write_text(f"dataset: glyphs\nmodel: {file}:MyNet\nmodel_args: {{width: 7}}\n")
    config = load_train_config(tmp_path / "train.yml").config
    args = json.loads(json.dumps(complete_args(config.model_record)))
    assert (args["width"], args["num_classes"], config.display_name) == (7, 1000, "MyNet")

    model = build_model(config.model, args, SHAPE, seed=1)
    assert model.head.weight.shape == (1000, 7)
    card = ModelCard(config.model, args, SHAPE, "my", "glyphs", "meta", step=1, seed=1)
    save_checkpoint(tmp_path / "step-000001", model, card, {})
    loaded, _ = load_model(tmp_path / "step-000001")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert smoke_test(config).model_args["width"] == 8


def test_a_users_model_starts_from_its_seed_alone(tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(
        NET.replace("self.fc =", "self.scale = nn.Parameter(torch.randn(3))\n        self.fc =")
    )
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        states.append(build_model(f"{tmp_path}/my_net.py:MyNet", {}, SHAPE, seed=7).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("code", [NET, WITH_RECORD], ids=["signature", "record"])
def test_a_wrong_argument_of_a_users_model_has_its_line_and_the_allowed_ones(tmp_path: Path, code: str) -> None:
    (tmp_path / "my_net.py").write_text(code)
    [wrong, unknown] = config_problems(
        tmp_path, f"model: {tmp_path}/my_net.py:MyNet\nmodel_args:\n  colour: red\n  width: wide"
    )
    assert f"{tmp_path}/train.yml:4: model_args.colour: unknown key; allowed: num_classes" in unknown
    assert unknown.endswith("width")
    assert wrong.startswith(f"{tmp_path}/train.yml:5: model_args.width: ")
    assert wrong.endswith('found "wide"')


def test_a_list_of_a_config_suits_a_tuple_of_a_signature(tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(NET)
    text = f"dataset: glyphs\nmodel: {tmp_path}/my_net.py:MyNet\nmodel_args: {{sizes: [1, 2]}}\n"
    (tmp_path / "train.yml").write_text(text)
    record = load_train_config(tmp_path / "train.yml").config.model_record
    assert complete_args(record)["sizes"] == [1, 2]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("MyNet(MetaModel)", "YourNet(MetaModel)", ("defines no MyNet", "YourNet")),
        ("image_shape: tuple[int, int, int], width", "shape: tuple[int, int, int], width", ("MyNet", "image_shape")),
        ("num_classes: int = 1000", "outputs: int = 1000", ("MyNet", "num_classes")),
        ("width: int = 5", 'width: "Width" = 5', ("MyNet", "Width")),
        ("import torch\n", "import no_such_package\n", ("importing it failed", "no_such_package")),
    ],
)
def test_what_the_code_lacks_is_a_problem_of_the_line_that_names_it(
    tmp_path: Path, old: str, new: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / "my_net.py").write_text(NET.replace(old, new, 1))
    problems = config_problems(tmp_path, f"model: {tmp_path}/my_net.py:MyNet")
    assert problems[0].startswith(f"{tmp_path}/train.yml:2: model: {tmp_path}/my_net.py")
    assert all(part in problems[0] for part in parts)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("(MetaModel)", "(nn.Module)", "MetaModel"),
        ('head_layer = head_prefix = "fc"', "pass", "head_layer, head_prefix"),
        ('head_layer = head_prefix = "fc"', 'head_layer = head_prefix = "fcc"', "fcc"),
        ("def encode", "def features", "encode"),
        ("return self.fc(features)", "return features", "[2, 5]"),
        ("return self.fc(features)", "return features @ 3", "TypeError"),
        ("nn.Linear(width, num_classes)", "nn.Linear(width)", "TypeError"),
    ],
)
def test_what_is_no_meta_model_says_what_is_missing(tmp_path: Path, old: str, new: str, part: str) -> None:
    assert old in NET
    (tmp_path / "my_net.py").write_text(NET.replace(old, new, 1))
    with pytest.raises(ConfigError) as error:
        build_model(f"{tmp_path}/my_net.py:MyNet", {}, SHAPE, seed=1)
    assert f"{tmp_path}/my_net.py:MyNet: " in str(error.value)
    assert part in str(error.value)


def test_a_module_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package_of_nets.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    assert build_model("my_package_of_nets:MyNet", {"width": 3}, SHAPE, seed=1).head.in_features == 3


def test_a_classifier_takes_a_users_encoder_and_head(tmp_path: Path) -> None:
    file = tmp_path / "vgg.py"
    file.write_text(ENCODER)
    args = {"encoder": f"{file}:vgg", "encoder_args": {"width": 3}, "classifier": f"{file}:Cosine"}
    (tmp_path / "train.yml").write_text(f"dataset: glyphs\nmodel: classifier\nmodel_args: {json.dumps(args)}\n")
    config = load_train_config(tmp_path / "train.yml").config
    model = build_model("classifier", complete_args(config.model_record), SHAPE, seed=1)
    assert model.head_layer == "classifier.out"
    assert model(torch.zeros(2, *SHAPE)).shape == (2, 1000)
    assert model.head.in_features == 3 * 4


def test_a_wrong_argument_of_a_users_encoder_has_its_line(tmp_path: Path) -> None:
    (tmp_path / "vgg.py").write_text(ENCODER)
    text = f"model: classifier\nmodel_args:\n  encoder: {tmp_path}/vgg.py:vgg\n  encoder_args:\n    hight: 3"
    [problem] = config_problems(tmp_path, text)
    assert problem.endswith("train.yml:6: model_args.encoder_args.hight: unknown key; allowed: depth, width")


def test_an_encoder_returns_features_not_maps(tmp_path: Path) -> None:
    (tmp_path / "vgg.py").write_text(ENCODER.replace(", nn.Flatten()", ""))
    with pytest.raises(ConfigError, match=r"\[1, 4, 2, 2\]"):
        build_model("classifier", {"encoder": f"{tmp_path}/vgg.py:vgg"}, SHAPE, seed=1)


def test_a_checkpoint_whose_code_is_gone_says_which(tmp_path: Path) -> None:
    file = tmp_path / "lost_net.py"
    file.write_text(NET)
    model = build_model(f"{file}:MyNet", {}, SHAPE, seed=1)
    card = ModelCard(f"{file}:MyNet", {}, SHAPE, "my", "glyphs", "meta", step=1, seed=1)
    save_checkpoint(tmp_path / "c", model, card, {})
    card_file = tmp_path / "c" / "model.json"
    card_file.write_text(card_file.read_text().replace("lost_net.py", "elsewhere.py"))
    with pytest.raises(CheckpointError) as error:
        load_model(tmp_path / "c")
    assert str(card_file) in str(error.value)
    assert f"{tmp_path}/elsewhere.py" in str(error.value)


SUBCLASS = """
from torch import nn
from anml.models.anml import Anml


class Twice(Anml):
    def encode(self, images, gate=None):
        return 2 * super().encode(images, gate)


class Activations(nn.Module):
    def __init__(self, features, num_classes: int = 1000):
        super().__init__()
        self.out = nn.Linear(features, num_classes)

    def forward(self, features):
        return self.out(features.relu())


def late_norm(image_shape):
    block = nn.Sequential()
    for name, layer in (("conv", nn.Conv2d(image_shape[0], 3, 3)), ("relu", nn.ReLU()),
                        ("norm", nn.InstanceNorm2d(3, affine=True))):
        block.add_module(name, layer)
    return nn.Sequential(block, nn.Flatten())
"""


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("{file}:Twice", {"rln_chs": 3, "nm_chs": 2}),
        ("classifier", {"encoder": "anml-encoder", "classifier": "{file}:Activations"}),
        ("classifier", {"encoder": "{file}:late_norm"}),
    ],
)
def test_gradients_by_hand_are_not_taken_of_what_only_looks_like_a_shipped_model(
    tmp_path: Path, name: str, args: dict[str, Any]
) -> None:
    file = tmp_path / "own.py"
    file.write_text(SUBCLASS)
    args = {key: value.format(file=file) if isinstance(value, str) else value for key, value in args.items()}
    model = build_model(name.format(file=file), args, SHAPE, seed=1)
    assert AdjointEngine.unsupported(
        model, [n for n, _ in model.named_parameters() if not belongs_to(n, model.gate_prefix)]
    )
