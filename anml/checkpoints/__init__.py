"""Checkpoints: tensors as safetensors beside readable JSON; written atomically, verified when read."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from anml import __version__
from anml.atomic import new_folder, read_json
from anml.config.model_args import MODELS, model_references
from anml.errors import CheckpointError, ConfigError
from anml.models import build_model
from anml.models.meta_model import MetaModel, find_not_finite
from anml.plugins import is_reference, load_object

_PARTS = ("model", "training")


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint says of its model: enough to build it, and to know where it comes from.

    model: a name of config/model_args.py, or a reference to a user's own class.
    step: episodes (or optimizer steps) trained; 0 is a freshly initialised network.
    class_split, imgs_per_class: of images-folder, the names of the classes for training and for evaluation.
    ema_decay: the model is an exponential moving average of the trained weights.
    best_step: the model is the one after this step, the best so far on held-out classes.
    train_classes: how many of the background classes (the first ones) were trained on; None: all, or not known.
    rotations: each class was trained on as so many, turned by these degrees; None: as it is, or not known.
    """

    model: str
    model_args: dict[str, Any]
    image_shape: tuple[int, int, int]
    display_name: str
    dataset: str
    train_method: str
    step: int
    seed: int
    code_version: str = __version__
    class_split: dict[str, list[str]] | None = None
    imgs_per_class: int | None = None
    ema_decay: float | None = None
    train_classes: int | None = None
    best_step: int | None = None
    rotations: Sequence[int] | None = None


def save_checkpoint(folder: Path, model: MetaModel, card: ModelCard, training: dict[str, Any]) -> None:
    """Write model, model card and training state (an optimizer's and scheduler's state_dict) as one folder."""
    with new_folder(folder) as new:
        _write_model(new, model, card, {})
        tensors, plain = _split_tensors(training)
        save_file(tensors, new / "training.safetensors")
        _write(new / "training.json", {"state": plain, "sha256": _sha256(new / "training.safetensors")})


def save_model(folder: Path, model: MetaModel, card: ModelCard, about: dict[str, Any]) -> None:
    """Write a model to share, without training state. `about` tells people more than the card; programs ignore it."""
    with new_folder(folder) as new:
        _write_model(new, model, card, {"about": about})


def _write_model(folder: Path, model: MetaModel, card: ModelCard, more: dict[str, Any]) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner may read.
    _write(folder / "model.json", {**asdict(card), "sha256": _sha256(folder / "model.safetensors"), **more})


def load_model(folder: Path, device: torch.device | None = None) -> tuple[MetaModel, ModelCard]:
    """Return the model of a checkpoint and its card.

    Raises CheckpointError when it is damaged, incomplete or not finite, or when a user's code is no longer found.
    """
    card = read_card(folder)
    args = card.model_args
    state = _load_tensors(folder / "model.safetensors", read_json(folder / "model.json").get("sha256"))
    try:
        for reference in model_references(card.model, args):
            load_object(reference)
    except ConfigError as error:
        message = f"{folder / 'model.json'}: the code of its model cannot be loaded: {error}. Put it there again."
        raise CheckpointError(message) from None
    if isinstance(args, dict) and args.get("encoder") == "anml-encoder":
        # Older cards left this default out, which is another one by now.
        args = args | {"encoder_args": {"num_blocks": 3} | (args.get("encoder_args") or {})}
    try:
        model = build_model(card.model, args, card.image_shape, card.seed)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, ConfigError) as error:
        message = f"{folder}: the tensors do not fit the model its card describes: {error}"
        raise CheckpointError(message) from None
    check_finite(folder, model)
    return model.to(device or torch.device("cpu")), card


def check_finite(path: Path, model: MetaModel) -> None:
    """Raise CheckpointError where the model that was read from `path` holds a NaN or an infinity."""
    if name := find_not_finite(model.state_dict()):
        message = f"{path}: {name} holds numbers that are not finite: training diverged. Take an earlier checkpoint."
        raise CheckpointError(message)


def read_card(folder: Path) -> ModelCard:
    """Return the model card of a checkpoint. Raises CheckpointError."""
    file = folder / "model.json"
    if not file.is_file():
        message = f"{folder}: no checkpoint here: expected a folder with model.safetensors and model.json"
        raise CheckpointError(message)
    data = {key: value for key, value in read_json(file).items() if key not in ("sha256", "about")}
    try:
        channels, height, width = data["image_shape"]
        card = ModelCard(**{**data, "image_shape": (channels, height, width)})
    except (TypeError, KeyError, ValueError) as error:
        message = f"{file}: not a model card of this program ({error})"
        raise CheckpointError(message) from None
    if not isinstance(card.model, str) or not (card.model in MODELS or is_reference(card.model)):
        message = f"{file}: unknown model {card.model!r}; known: {', '.join(MODELS)}"
        raise CheckpointError(message)
    return card


def load_training_state(folder: Path) -> dict[str, Any]:
    """Return the training state saved beside a model. Raises CheckpointError."""
    data = read_json(folder / "training.json")
    tensors = _load_tensors(folder / "training.safetensors", data.get("sha256"))
    try:
        return _join_tensors(data["state"], tensors)
    except (AttributeError, KeyError, StopIteration) as error:
        message = f"{folder / 'training.json'}: not a training state of this program ({error})"
        raise CheckpointError(message) from None


def is_complete(folder: Path, parts: Sequence[str] = _PARTS) -> bool:
    """Say whether a checkpoint (or one part of it) exists and is intact."""
    expected = {folder / f"{part}.safetensors": read_json(folder / f"{part}.json").get("sha256") for part in parts}
    return all(digest and file.is_file() and _sha256(file) == digest for file, digest in expected.items())


def steps_saved(checkpoints: Path) -> list[int]:
    """Return the steps that a folder of checkpoints holds, in order (not verified)."""
    names = [path.name for path in checkpoints.glob("step-*") if path.is_dir()]
    return sorted(int(name.removeprefix("step-")) for name in names if re.fullmatch(r"step-\d{6,}", name))


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load_tensors(file: Path, expected: str | None) -> dict[str, torch.Tensor]:
    if not file.is_file():
        message = f"{file}: missing; the checkpoint is incomplete"
        raise CheckpointError(message)
    if _sha256(file) != expected:
        message = f"{file}: the content is not what was saved (checksum differs). Use another checkpoint."
        raise CheckpointError(message)
    try:
        return load_file(file)
    except SafetensorError as error:
        message = f"{file}: cannot be read: {error}"
        raise CheckpointError(message) from None


def _split_tensors(state: Any, path: str = "") -> tuple[dict[str, torch.Tensor], Any]:
    """Split nested dicts and lists into named tensors and a JSON-able rest that refers to them."""
    if isinstance(state, torch.Tensor):
        return {path: state.detach().cpu().contiguous()}, {"tensor": path}
    if isinstance(state, (dict, list, tuple)):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        parts = {str(key): _split_tensors(value, f"{path}/{key}") for key, value in items}
        tensors = {name: tensor for part, _ in parts.values() for name, tensor in part.items()}
        plain = {key: rest for key, (_, rest) in parts.items()}
        kind = "dict" if isinstance(state, dict) else "list"
        return tensors, {kind: plain if kind == "dict" else list(plain.values())}
    return {}, {"value": state}


def _join_tensors(plain: Any, tensors: dict[str, torch.Tensor]) -> Any:
    kind, content = next(iter(plain.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        # Optimizer states are keyed by position, which JSON makes text of.
        items = ((int(key) if key.isdigit() else key, value) for key, value in content.items())
        return {key: _join_tensors(value, tensors) for key, value in items}
    if kind == "list":
        return [_join_tensors(value, tensors) for value in content]
    return content
