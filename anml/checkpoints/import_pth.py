"""Reads a plain state_dict of higherANML, such as `256_112_2304_ANML-29999.pth`: the model is rebuilt from its shapes.

Such a file holds tensors and nothing else. What a checkpoint of ours says in `model.json` is inferred: the model from
the names, its arguments and the image size from the shapes, the step from the file's name.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from anml.checkpoints import ModelCard, check_finite
from anml.config.facts import DATASETS
from anml.config.model_args import OmlArgs, named_part
from anml.errors import CheckpointError, ConfigError
from anml.models import build_model
from anml.models.meta_model import MetaModel

State: TypeAlias = dict[str, torch.Tensor]

# Image sizes of the published models: ANML and SANML, OML.
_SIZES = (28, 84)
_HOW = "Write one with torch.save(model.state_dict(), FILE)."
_BLOCK = re.compile(r"\b(rln|nm)\.encoder\.(\d+)\.([01])\.")
_OML_BLOCK = re.compile(r"^rln\.(\d+)\.0\.")


class Network(NamedTuple):
    """A model that a file may hold."""

    model: str
    model_args: dict[str, Any]
    image_shape: tuple[int, int, int]


def load_pth(
    file: Path, dataset: str | None = None, im_size: int | None = None, device: torch.device | None = None
) -> tuple[MetaModel, ModelCard]:
    """Return the model of a state_dict and a card for it. Raises CheckpointError, and ConfigError for the arguments.

    dataset: what it was trained on (default: omniglot). im_size: pixels (default: the data set's size, or another
    published one, whichever fits). The card's step is the number at the end of the file's name (0 without one), its
    seed 0: the file does not say.
    """
    state = our_names(_read_tensors(file))
    _check_name(file, state)
    network = recognise(file, state, dataset, im_size)
    model = build_model(network.model, network.model_args, network.image_shape, seed=0)
    model.load_state_dict(state)
    check_finite(file, model)
    name, step = re.fullmatch(r"(.+?)(?:-(\d+))?", file.stem).groups()  # type: ignore[union-attr]
    trained_on = dataset or "omniglot"
    card = ModelCard(
        *network, display_name=name, dataset=trained_on, train_method="unknown", step=int(step or 0), seed=0
    )
    return model.to(device or torch.device("cpu")), card


def recognise(file: Path, state: State, dataset: str | None, im_size: int | None) -> Network:
    """Return the network whose parameters have exactly the names and shapes of a state. Raises CheckpointError."""
    channels, facts = _channels(file, state), DATASETS.get(dataset or "omniglot")
    likely = dict.fromkeys((facts.default_size, *_SIZES) if facts else _SIZES)
    sizes = (im_size,) if im_size else tuple(likely)
    if dataset is None and channels != DATASETS["omniglot"].channels:
        message = f"{file}: made for images of {channels} channels; name the data set (config or --set: dataset)"
        raise ConfigError(message)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for size, (model, args) in itertools.product(sizes, _candidates(state)):
        network = Network(model, args, (channels, size, size))
        if _shapes(network) == shapes:
            return network
    message = (
        f"{file}: not a complete ANML, SANML or OML for images of {' or '.join(map(str, sizes))} pixels; if it was "
        f"trained on others, say so: --set im_size=N. OML has the strides {', '.join(map(str, OmlArgs().strides))}"
    )
    raise CheckpointError(message)


def our_names(state: State) -> State:
    """Return a state with our parameter names.

    higherANML's later networks number what the published checkpoint names (`rln.encoder.0.1.bias` for
    `rln.convBlock1.norm.bias`). Its OML has a module per block, and its last layer a second time.
    """

    def block_name(match: re.Match[str]) -> str:
        part, number, layer = match.groups()
        return f"{part}.convBlock{int(number) + 1}.{('conv', 'norm')[int(layer)]}."

    renamed = {_BLOCK.sub(block_name, name): tensor for name, tensor in state.items()}
    if "pn.2.weight" in state:
        renamed = {_OML_BLOCK.sub(lambda m: f"rln.{2 * int(m[1])}.", name): t for name, t in renamed.items()}
        renamed = {name: tensor for name, tensor in renamed.items() if not name.startswith("output_layer.")}
    return renamed


def _candidates(state: State) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the models that the names allow, and what of their arguments the shapes tell. Pooling has no parameters."""
    if "pn.2.weight" in state:
        layers = {"num_filters": "rln.0", "hidden": "pn.0", "num_classes": "pn.2"}
        yield "oml", {argument: _rows(state, layer) for argument, layer in layers.items()}
        return
    at = _prefix(state)
    blocks = len([name for name in state if re.fullmatch(rf"{at}rln\.convBlock\d+\.conv\.weight", name)])
    args = {"rln_chs": _rows(state, f"{at}rln.convBlock1.conv"), "num_blocks": blocks}
    if f"{at}nm.fc.weight" in state:
        args["nm_chs"] = _rows(state, f"{at}nm.convBlock1.conv")
    pools = [f"pool_{part}_output" for part in ("rln", "nm") if f"{part}_chs" in args]
    for pooled in itertools.product((False, True), repeat=len(pools)):
        whole = {**args, **dict(zip(pools, pooled, strict=True))}
        if at:
            head = {"num_classes": _rows(state, "classifier.linear")}
            yield "classifier", {"encoder": "anml-encoder", "encoder_args": whole, "classifier_args": head}
        else:
            yield "anml" if "nm_chs" in args else "sanml", {**whole, "num_classes": _rows(state, "fc")}


def _prefix(state: State) -> str:
    # An ANML may be the encoder of a `classifier`.
    return "encoder." if "encoder.nm.fc.weight" in state else ""


def _shapes(network: Network) -> Mapping[str, torch.Size]:
    """Return the names and shapes of a network's parameters: none, when there is no such network."""
    try:
        with torch.device("meta"):
            part = named_part("model", network.model)
            model = part.build(part.args(**network.model_args), image_shape=network.image_shape)
            return {name: tensor.shape for name, tensor in model.state_dict().items()}
    except (ConfigError, ValueError):
        return {}


def _rows(state: State, layer: str) -> int:
    """Return the output channels of a layer: 0, which fits no model, when it is not there."""
    tensor = state.get(f"{layer}.weight")
    return 0 if tensor is None or tensor.dim() == 0 else tensor.shape[0]


def _channels(file: Path, state: State) -> int:
    """Return the channels of the images. Raises CheckpointError where the names are of no model of ours."""
    first = state.get(f"{_prefix(state)}rln.convBlock1.conv.weight", state.get("rln.0.weight"))
    if first is None or first.dim() != 4:
        names = ", ".join(list(state)[:4])
        more = ", ..." if len(state) > 4 else ""
        message = f"{file}: no state_dict of ANML, SANML or OML; it holds {names or 'nothing'}{more}"
        raise CheckpointError(message)
    return first.shape[1]


def _check_name(file: Path, state: State) -> None:
    """Raise CheckpointError where a name begins with other channels of RLN and NM, or features, than the file holds."""
    named = re.match(r"(\d+)_(\d+)_(\d+)_", file.name)
    features = state.get("fc.weight")
    if named is None or features is None or features.dim() != 2:
        return
    held = (_rows(state, "rln.convBlock1.conv"), _rows(state, "nm.convBlock1.conv"), features.shape[1])
    if tuple(map(int, named.groups())) != held:
        says, tensors = named[0][:-1], "_".join(map(str, held))
        message = f"{file}: the name says {says} (RLN, NM, features), the tensors are {tensors}; rename the file"
        raise CheckpointError(message)


def _read_tensors(file: Path) -> State:
    try:
        # weights_only: nothing in the file is executed.
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        message = f"{file}: cannot be read: {error.strerror or error}"
        raise CheckpointError(message) from None
    except Exception:  # A damaged pickle may raise anything. Torch advises to execute the file: not passed on.
        message = f"{file}: cannot be read as a state_dict: damaged, or more than tensors. {_HOW}"
        raise CheckpointError(message) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        message = f"{file}: holds something else than a state_dict. {_HOW}"
        raise CheckpointError(message)
    return {str(name): tensor for name, tensor in state.items()}
