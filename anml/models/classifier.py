"""`classifier`: any encoder followed by any head, with the parameter names of higherANML's configs."""

import torch
from torch import nn

from anml.config.model_args import AnmlEncoderArgs, ClassifierArgs, ConvnetArgs, HeadArgs, LinearHeadArgs
from anml.models.anml import AnmlEncoder
from anml.models.blocks import output_width
from anml.models.meta_model import MetaModel


class Classifier(MetaModel):
    """Submodules `encoder` and `classifier` (`classifier.linear`, or `classifier.mlp.0`, `classifier.mlp.2`, ...)."""

    head_prefix = "classifier"

    def __init__(self, args: ClassifierArgs, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        encoder_args, head_args = args.encoder_record(), args.head_record()
        if isinstance(encoder_args, AnmlEncoderArgs):
            self.encoder: nn.Module = AnmlEncoder(encoder_args, image_shape)
            self.gate_prefix = "encoder.nm"
        else:
            self.encoder = convnet(encoder_args, image_shape[0])
        self.classifier = head(head_args, output_width(self.encoder, image_shape))
        layers = [name for name, module in self.named_modules() if isinstance(module, nn.Linear)]
        self.head_layer = layers[-1]

    def modulate(self, images: torch.Tensor) -> torch.Tensor | None:
        """Return the gate of `anml-encoder`, None for other encoders."""
        return self.encoder.modulate(images) if isinstance(self.encoder, AnmlEncoder) else None

    def encode(self, images: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        """Return features [n, features]."""
        return self.encoder(images) if gate is None else self.encoder(images, gate)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits [n, classes]."""
        return self.classifier(features)


def head(args: HeadArgs, features: int) -> nn.Sequential:
    """Return the head: one Linear layer, or several with ReLU between them."""
    if isinstance(args, LinearHeadArgs):
        sequential = nn.Sequential()
        sequential.add_module("linear", nn.Linear(features, args.num_classes))
        return sequential
    mlp = nn.Sequential()
    for width in args.hidden_layers:
        mlp.extend([nn.Linear(features, width), nn.ReLU()])
        features = width
    mlp.append(nn.Linear(features, args.num_classes))
    sequential = nn.Sequential()
    sequential.add_module("mlp", mlp)
    return sequential


def convnet(args: ConvnetArgs, channels: int) -> nn.Sequential:
    """Return blocks `block1` ... `blockN`, each convolution, norm, ReLU, max-pooling, and a flattening."""
    net = nn.Sequential()
    columns = (args.num_filters, args.kernel_size, args.stride, args.padding, args.pool_size)
    for i in range(args.num_blocks):
        filters, kernel, stride, padding, pool = (column[0 if len(column) == 1 else i] for column in columns)
        block = nn.Sequential()
        block.add_module("conv", nn.Conv2d(channels, filters, kernel, stride=stride, padding=padding))
        if args.norm_type:
            block.add_module("norm", _norm(args.norm_type, filters))
        block.add_module("relu", nn.ReLU())
        if pool:
            block.add_module("pool", nn.MaxPool2d(pool))
        net.add_module(f"block{i + 1}", block)
        channels = filters
    net.add_module("flatten", nn.Flatten())
    return net


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "in":
        return nn.InstanceNorm2d(channels, affine=True)
    # One group, as in higherANML: it divides every number of channels.
    return nn.BatchNorm2d(channels) if kind == "bn" else nn.GroupNorm(1, channels)
