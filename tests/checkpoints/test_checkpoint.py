"""Checkpoints come back to the bit, and whatever is wrong with one is said in words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anml.checkpoints import (
    ModelCard,
    is_complete,
    load_model,
    load_training_state,
    read_card,
    save_checkpoint,
    steps_saved,
)
from anml.config.model_args import complete_args, named_part
from anml.errors import CheckpointError
from anml.models import build_model
from anml.models.meta_model import MetaModel

ARGS = {"rln_chs": 3, "num_classes": 5}
CARD = ModelCard("sanml", ARGS, (1, 28, 28), "SANML", "omniglot", "meta", step=20, seed=3)


@pytest.fixture
def model() -> MetaModel:
    return build_model("sanml", ARGS, (1, 28, 28), seed=1)


@pytest.fixture
def training(model: MetaModel) -> dict:
    """The state of an optimizer that has taken a step, and what else training keeps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1 / 3, fused=True)
    loss = model(torch.rand(2, 1, 28, 28)).sum()
    loss.backward()
    optimizer.step()
    return {"optimizer": optimizer.state_dict(), "recent": torch.rand(2, 2), "nothing": [], "name": None}


@pytest.fixture
def folder(tmp_path: Path, model: MetaModel, training: dict) -> Path:
    path = tmp_path / "step-000020"
    save_checkpoint(path, model, CARD, training)
    return path


def test_a_model_and_its_card_come_back(folder, model):
    loaded, card = load_model(folder)
    assert card == CARD
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_training_state_comes_back_to_the_bit(folder, model, training):
    state = load_training_state(folder)
    assert list(state) == list(training)
    assert torch.equal(state["recent"], training["recent"])
    assert (state["nothing"], state["name"]) == ([], None)
    assert state["optimizer"]["state"].keys() == training["optimizer"]["state"].keys()
    for index, expected in training["optimizer"]["state"].items():
        assert all(torch.equal(value, state["optimizer"]["state"][index][key]) for key, value in expected.items())
    [group], [expected] = state["optimizer"]["param_groups"], training["optimizer"]["param_groups"]
    assert group | {"betas": tuple(group["betas"])} == expected
    torch.optim.Adam(model.parameters(), fused=True).load_state_dict(state["optimizer"])


def test_a_model_saved_twice_has_the_same_bytes(folder, tmp_path, model, training):
    save_checkpoint(tmp_path / "again", model, CARD, training)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("name", "old", "size", "features"),
    [
        # As written before blocks and pooling could follow from the images' size, and norms differ by block.
        ("anml", {"rln_chs": 3, "nm_chs": 2, "num_blocks": 3, "pool_rln_output": False, "pool_nm_output": False,
                  "num_classes": 5}, 28, 3 * 3**2),
        ("sanml", {"rln_chs": 2, "num_blocks": 3, "pool_rln_output": False, "num_classes": 5}, 84, 2 * 17**2),
        ("classifier", {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": [3], "norm_type": "in"},
                        "classifier": "linear-classifier", "classifier_args": {"num_classes": 5}}, 28, 3 * 7**2),
        ("classifier", {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "norm_type": None},
                        "classifier": "linear-classifier", "classifier_args": {"num_classes": 5}}, 28, 64 * 7**2),
    ],
)  # fmt: skip
def test_older_cards_still_describe_the_same_network(tmp_path, name, old, size, features):
    model = build_model(name, old, (1, size, size), seed=1)
    save_checkpoint(tmp_path / "c", model, ModelCard(name, old, (1, size, size), "c", "omniglot", "meta", 1, 1), {})
    loaded, card = load_model(tmp_path / "c")
    assert card.model_args == old
    assert loaded.head.in_features == features
    images = torch.rand(2, 1, size, size)
    assert torch.equal(loaded(images), model(images))


def test_an_older_card_that_left_out_the_blocks_meant_three_unpooled(tmp_path):
    old = {"encoder": "anml-encoder", "encoder_args": {"rln_chs": 2, "nm_chs": 2}, "classifier_args": {}}
    blocks = old | {"encoder_args": {"rln_chs": 2, "nm_chs": 2, "num_blocks": 3}}
    model = build_model("classifier", blocks, (1, 84, 84), seed=1)
    save_checkpoint(tmp_path / "c", model, ModelCard("classifier", old, (1, 84, 84), "c", "omniglot", "meta", 1, 1), {})
    loaded, card = load_model(tmp_path / "c")
    assert card.model_args == old
    assert loaded.head.in_features == 2 * 17**2


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("anml", {"rln_chs": 2, "nm_chs": 2}),
        ("classifier", {"encoder": "convnet", "encoder_args": {"num_blocks": 2}, "classifier_args": None}),
        ("classifier", {"encoder": "resnet12", "classifier": "metric-classifier"}),
    ],
)
def test_a_card_holds_every_argument(name, args):
    record = named_part("model", name).args(**args)
    complete = json.loads(json.dumps(complete_args(record)))
    assert complete_args(named_part("model", name).args(**complete)) == complete
    states = [build_model(name, each, (1, 28, 28), seed=1).state_dict() for each in (args, complete)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    for part in ("encoder", "classifier") if name == "classifier" else ():
        known = named_part(part, complete[part]).args.model_fields
        assert set(complete[f"{part}_args"]) == set(known)


def test_running_statistics_are_part_of_a_model(tmp_path):
    args = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": [3], "norm_type": "bn"}}
    model = build_model("classifier", args, (1, 28, 28), seed=1)
    model(torch.rand(4, 1, 28, 28))
    card = ModelCard("classifier", args, (1, 28, 28), "c", "omniglot", "iid", 1, 1)
    save_checkpoint(tmp_path / "c", model, card, {})
    loaded, _ = load_model(tmp_path / "c")
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded.eval()(images), model.eval()(images))


def test_saving_again_replaces_a_damaged_checkpoint(folder, model, training):
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "stray").write_text("left over")
    save_checkpoint(folder, model, CARD, training)
    assert is_complete(folder)
    assert not (folder / "stray").exists()


def test_nothing_is_left_of_a_save_that_failed(tmp_path, model):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "step-000001", model, CARD, {"optimizer": object()})
    assert list(tmp_path.iterdir()) == []


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["model", "training"])
def test_damaged_tensors_make_a_checkpoint_incomplete(folder, name, damage: Callable[[Path], None]):
    assert is_complete(folder)
    damage(folder / f"{name}.safetensors")
    assert not is_complete(folder)


@pytest.mark.parametrize("name", ["model", "training"])
@pytest.mark.parametrize("content", [None, "", "{", "[1]", "{}", '{"sha256": null}', "\u00e9"])
def test_a_damaged_card_makes_a_checkpoint_incomplete(folder, name, content):
    file = folder / f"{name}.json"
    file.unlink() if content is None else file.write_text(content, encoding="latin-1")
    assert not is_complete(folder)


@pytest.mark.parametrize("damage", [flip_a_byte, truncate])
def test_damaged_tensors_are_never_loaded(folder, damage):
    damage(folder / "model.safetensors")
    damage(folder / "training.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the content is not what was saved"):
        load_model(folder)
    with pytest.raises(CheckpointError, match=r"training\.safetensors: the content is not what was saved"):
        load_training_state(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_never_loaded(tmp_path, model, value):
    with torch.no_grad():
        model.get_parameter("fc.bias")[2] = value
    save_checkpoint(tmp_path / "step-000020", model, CARD, {})
    with pytest.raises(CheckpointError, match=r"step-000020: fc\.bias .* not finite"):
        load_model(tmp_path / "step-000020")


def test_running_statistics_that_are_not_finite_count_too(tmp_path):
    args = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": [3], "norm_type": "bn"}}
    model = build_model("classifier", args, (1, 28, 28), seed=1)
    model.get_buffer("encoder.block2.norm.running_var")[1] = torch.inf
    card = ModelCard("classifier", args, (1, 28, 28), "c", "omniglot", "iid", 1, 1)
    save_checkpoint(tmp_path / "c", model, card, {})
    with pytest.raises(CheckpointError, match=r"encoder\.block2\.norm\.running_var .* not finite"):
        load_model(tmp_path / "c")


def test_missing_tensors_are_told(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing; the checkpoint is incomplete"):
        load_model(folder)


@pytest.mark.parametrize("place", ["nowhere", ".", "step-000020/model.safetensors"])
def test_what_is_no_checkpoint_says_what_one_is(folder, place):
    with pytest.raises(CheckpointError, match=r"no checkpoint here: expected a folder with model\.safetensors"):
        load_model(folder.parent / place)


@pytest.mark.parametrize(
    "content",
    ["[1, 2]", "null", '{"a": 1}', "{", '{"image_shape": []}', '{"image_shape": [1, 28, 28], "colour": "red"}'],
)
def test_foreign_json_is_not_taken_for_a_card(folder, content):
    (folder / "model.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.json: not a model card of this program"):
        read_card(folder)


def rewrite_card(folder: Path, **changes: object) -> None:
    data = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(data | changes))


@pytest.mark.parametrize("name", ["resnet", ["sanml"]])
def test_an_unknown_model_lists_the_known_ones(folder, name):
    rewrite_card(folder, model=name)
    with pytest.raises(CheckpointError, match="known: anml, nonml, sanml, oml, classifier"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {"rln_chs": 4}},
        {"model": "oml", "model_args": {"num_filters": 2}},
        {"model_args": {"channels": 3}},
        {"model_args": [1]},
        {"image_shape": [1, 8, 8]},
    ],
    ids=str,
)
def test_a_card_of_another_model_does_not_fit(folder, changes):
    rewrite_card(folder, **changes)
    with pytest.raises(CheckpointError, match="the tensors do not fit the model its card describes"):
        load_model(folder)


@pytest.mark.parametrize("state", ["{}", '{"tensor": "/missing"}', '{"dict": {"a": 1}}', "3"])
def test_a_foreign_training_state_is_refused(folder, state):
    data = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(data | {"state": json.loads(state)}))
    with pytest.raises(CheckpointError, match=r"training\.json: not a training state of this program"):
        load_training_state(folder)


def test_a_checkpoint_without_training_state_says_so(folder):
    (folder / "training.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"training\.safetensors: missing"):
        load_training_state(folder)


def test_tensors_of_a_larger_model_are_refused(folder, tmp_path):
    save_file({"fc.weight": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="checksum differs"):
        load_model(folder)


def test_only_whole_names_are_steps(tmp_path):
    for name in ("step-000500", "step-000020", "step-1234567", "step-000500-backup", "step-12", ".step-000600.x1y2"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000700").touch()
    assert steps_saved(tmp_path) == [20, 500, 1234567]


def test_a_folder_that_is_not_there_holds_no_steps(tmp_path):
    assert steps_saved(tmp_path / "nowhere") == []
