"""Reads a plain state_dict of higherANML, such as `256_112_2304_ANML-29999.pth`: the model is rebuilt from its shapes.

Such a file holds tensors and nothing else. What a checkpoint of ours says in `model.json` is inferred: the model from
the names, its arguments and the image size from the shapes, the step from the file's name. What shapes leave open, such
as the padding of a `convnet`, the user says (`model_args`), unless one network of higherANML's configs fits alone.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch

from anml.checkpoints import ModelCard, check_finite
from anml.config.facts import DATASETS
from anml.config.model_args import ENCODERS, OmlArgs, named_part
from anml.errors import CheckpointError, ConfigError
from anml.models import build_model
from anml.models.meta_model import MetaModel

State: TypeAlias = dict[str, torch.Tensor]

# Image sizes of the published models: ANML and SANML, OML.
_SIZES = (28, 84)
_HOW = "Write one with torch.save(model.state_dict(), FILE)."
# What a file may hold around its state_dict, and what may stand before every name in it.
_WRAPPERS = ("state_dict", "model_state_dict", "model_sd", "model", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Names in higherANML's networks, earlier and later ones, and ours.
_NAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\b(rln|nm)\.encoder\.(\d+)\.0\.", lambda m: f"{m[1]}.convBlock{int(m[2]) + 1}.conv."),
    (r"\b(rln|nm)\.encoder\.(\d+)\.1\.", lambda m: f"{m[1]}.convBlock{int(m[2]) + 1}.norm."),
    (r"^rln\.blocks\.(\d+)\.conv0?\.", lambda m: f"rln.{2 * int(m[1])}."),
    (r"^encoder\.encoder\.(?=conv|norm)", "encoder.block1."),
    (r"^encoder\.encoder\.block(\d+)\.", r"encoder.block\1."),
    (r"^encoder\.encoder\.(\d+)\.", lambda m: f"encoder.block{int(m[1]) + 1}."),
    (r"^(encoder\.block\d+\.(?:conv|norm))0\.", r"\1."),
    (r"^(encoder\.block\d+\.(?:conv|norm))(\d+)\.", lambda m: f"{m[1]}{int(m[2]) + 1}."),
    (r"^encoder\.(?=conv1\.|bn1\.)", "encoder.stem."),
    (r"^encoder\.layer(\d)\.(\d+)\.", lambda m: f"encoder.stage{m[1]}.block{int(m[2]) + 1}.body."),
    (r"^encoder\.layer(\d)\.", r"encoder.stage\1.body."),
    (r"^(encoder\.s.*)\bbn(\d)\.", r"\1norm\2."),
    (r"^(encoder\.s.*)\bbody\.downsample\.0\.", r"\1shortcut.conv1."),
    (r"^(encoder\.s.*)\bbody\.downsample\.1\.", r"\1shortcut.norm1."),
    (r"^classifier\.mlp\.(?=weight|bias)", "classifier.mlp.0."),
    (r"^classifier\.proto$", "classifier.metric.weight"),
    (r"^classifier\.temp$", "classifier.metric.temperature"),
]
# The convnets of higherANML's configs, as far as tensors do not show it.
_CONVNETS = (
    {"padding": [1], "pool_size": [2]},
    {"padding": [0], "pool_size": [2, 2, 0]},
    {"padding": [0], "pool_size": [0], "stride": [2, 1, 2, 1, 2, 2]},
)
_FIRST = [
    f"{name}.weight"
    for name in ("rln.convBlock1.conv", "encoder.rln.convBlock1.conv", "rln.0", "encoder.block1.conv",
                 "encoder.stem.conv1", "encoder.stage1.body.conv1")
]  # fmt: skip
_RESNETS = [name for name in ENCODERS if name.startswith("resn") or name.startswith("wide")]


class Network(NamedTuple):
    """A model that a file may hold."""

    model: str
    model_args: dict[str, Any]
    image_shape: tuple[int, int, int]


def load_pth(
    file: Path,
    dataset: str | None = None,
    im_size: int | None = None,
    device: torch.device | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> tuple[MetaModel, ModelCard]:
    """Return the model of a state_dict and a card for it. Raises CheckpointError, and ConfigError for the arguments.

    dataset: what it was trained on (default: omniglot). im_size: pixels (default: the data set's size, or another
    published one, whichever fits). model_args: those that the tensors do not show. The card's step is the number at the
    end of the file's name (0 without one), its seed 0: the file does not say.
    """
    state = our_names(_read_tensors(file))
    _check_name(file, state)
    network = recognise(file, state, dataset, im_size, model_args or {})
    model = build_model(network.model, network.model_args, network.image_shape, seed=0)
    model.load_state_dict(state)
    check_finite(file, model)
    name, step = re.fullmatch(r"(.+?)(?:-(\d+))?", file.stem).groups()  # type: ignore[union-attr]
    trained_on = dataset or "omniglot"
    card = ModelCard(
        *network, display_name=name, dataset=trained_on, train_method="unknown", step=int(step or 0), seed=0
    )
    return model.to(device or torch.device("cpu")), card


def recognise(
    file: Path, state: State, dataset: str | None, im_size: int | None, given: Mapping[str, Any] = MappingProxyType({})
) -> Network:
    """Return the network whose parameters have exactly the names and shapes of a state. Raises CheckpointError."""
    channels, facts = _channels(file, state), DATASETS.get(dataset or "omniglot")
    likely = dict.fromkeys((facts.default_size, *_SIZES) if facts else _SIZES)
    sizes = (im_size,) if im_size else tuple(likely)
    if dataset is None and channels != DATASETS["omniglot"].channels:
        message = f"{file}: made for images of {channels} channels; name the data set (config or --set: dataset)"
        raise ConfigError(message)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for size in sizes:
        candidates = [Network(model, args, (channels, size, size)) for model, args in _candidates(state, given)]
        fitting = [network for network in candidates if _shapes(network) == shapes]
        if len(fitting) > 1 and fitting[0].model_args.get("encoder") == "convnet":
            raise ConfigError(_ambiguous(file, fitting))
        if fitting:
            return fitting[0]
    message = (
        f"{file}: not a complete ANML, SANML or OML, nor a known classifier, for images of "
        f"{' or '.join(map(str, sizes))} pixels; if it was trained on others, say so: --set im_size=N. OML has the "
        f"strides {', '.join(map(str, OmlArgs().strides))}; pth_args say what a classifier's tensors do not show"
    )
    raise CheckpointError(message)


def our_names(state: State) -> State:
    """Return a state with our parameter names. Its earliest OML holds its last layer a second time."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    names = list(state)
    for pattern, ours in _NAMES:
        names = [re.sub(pattern, ours, name) for name in names]
    if "pn.2.weight" in state:
        names = [re.sub(r"^rln\.(\d+)\.0\.", lambda m: f"rln.{2 * int(m[1])}.", name) for name in names]
    renamed = dict(zip(names, state.values(), strict=True))
    return {name: tensor for name, tensor in renamed.items() if not name.startswith("output_layer.")}


def _candidates(state: State, given: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the models that the names allow, and what of their arguments the shapes tell. Pooling has no parameters."""
    if head := _head(state):
        head["classifier_args"] |= given.get("classifier_args") or {}
        for encoder, args in _encoders(state, given.get("encoder_args") or {}):
            yield "classifier", {"encoder": encoder, "encoder_args": args} | head
        return
    if "pn.2.weight" in state:
        layers = {"num_filters": "rln.0", "hidden": "pn.0", "num_classes": "pn.2"}
        yield "oml", {argument: _rows(state, layer) for argument, layer in layers.items()}
        return
    for args in _anml_args(state, ""):
        yield "anml" if "nm_chs" in args else "sanml", args | {"num_classes": _rows(state, "fc")}


def _anml_args(state: State, at: str) -> Iterator[dict[str, Any]]:
    """Yield arguments of ANML, SANML or, under the prefix `at`, of `anml-encoder`."""
    blocks = len([name for name in state if re.fullmatch(rf"{at}rln\.convBlock\d+\.conv\.weight", name)])
    args = {"rln_chs": _rows(state, f"{at}rln.convBlock1.conv"), "num_blocks": blocks}
    if f"{at}nm.fc.weight" in state:
        args["nm_chs"] = _rows(state, f"{at}nm.convBlock1.conv")
    pools = [f"pool_{part}_output" for part in ("rln", "nm") if f"{part}_chs" in args]
    for pooled in itertools.product((False, True), repeat=len(pools)):
        yield {**args, **dict(zip(pools, pooled, strict=True))}


def _head(state: State) -> dict[str, Any]:
    """Return which head a `classifier` has, with its arguments: nothing for other models."""
    layers = sorted({int(m[1]) for name in state if (m := re.match(r"classifier\.mlp\.(\d+)\.", name))})
    widths = [_rows(state, f"classifier.mlp.{layer}") for layer in layers]
    if widths:
        args = {"num_classes": widths[-1], "hidden_layers": widths[:-1]}
        return {"classifier": "mlp-classifier", "classifier_args": args}
    for kind in ("linear", "metric"):
        if classes := _rows(state, f"classifier.{kind}"):
            return {"classifier": f"{kind}-classifier", "classifier_args": {"num_classes": classes}}
    return {}


def _encoders(state: State, given: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the encoders that the names of a `classifier` allow, with their arguments."""
    if "encoder.nm.fc.weight" in state:
        yield from (("anml-encoder", args) for args in _anml_args(state, "encoder."))
    elif "encoder.stem.conv1.weight" in state:
        yield from ((name, {"width": _rows(state, "encoder.stem.conv1")} | dict(given)) for name in _RESNETS)
    elif "encoder.stage1.body.conv1.weight" in state:
        channels = [_rows(state, f"encoder.stage{number}.body.conv1") for number in range(1, 5)]
        yield "resnet12", {"channels": channels} | dict(given)
    elif "encoder.block1.conv.weight" in state:
        first = [name for name in state if re.fullmatch(r"encoder\.block\d+\.conv\.weight", name)]
        args: dict[str, Any] = {
            "num_blocks": len(first),
            "num_filters": [state[name].shape[0] for name in first],
            "kernel_size": [state[name].shape[-1] for name in first],
            "num_conv_per_block": [
                sum(n.startswith(name[:-7]) and n.endswith("weight") for n in state) for name in first
            ],
        }
        if "encoder.block1.norm.weight" not in state:
            args["norm_type"] = None
        elif "encoder.block1.norm.running_mean" in state:
            args["norm_type"] = "bn"
        is_said = {"padding", "pool_size", "stride"} & given.keys()
        yield from (("convnet", args | shape | dict(given)) for shape in ([{}] if is_said else _CONVNETS))


def _ambiguous(file: Path, fitting: Sequence[Network]) -> str:
    """Word that several networks have these tensors."""
    args = [network.model_args["encoder_args"] for network in fitting]
    differ = [{key: each[key] for key in each if any(other.get(key) != each[key] for other in args)} for each in args]
    return (
        f"{file}: several networks have these tensors; say which by --set pth_args.encoder_args.KEY=VALUE: "
        + " or ".join(map(str, differ))
    )


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
    """Return the channels of the images. Raises CheckpointError where the names are of no model that is known."""
    first = next((state[name] for name in _FIRST if name in state), None)
    if first is None or first.dim() != 4:
        names = ", ".join(list(state)[:4])
        more = ", ..." if len(state) > 4 else ""
        message = f"{file}: no state_dict of ANML, SANML, OML or a classifier; it holds {names or 'nothing'}{more}"
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
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        message = f"{file}: holds something else than a state_dict. {_HOW}"
        raise CheckpointError(message)
    return {str(name): tensor for name, tensor in state.items()}
