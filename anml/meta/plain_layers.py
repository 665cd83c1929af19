"""Layers rewritten so that they can be compiled, captured and trained in lanes, with the same second-order gradients.

PyTorch gets some of those wrong, without a word (torch 2.13; tests/meta/test_program.py has the cases):

* under torch.vmap, InstanceNorm's second derivative (its backward takes mean and rate for constants,
  github.com/pytorch/functorch/issues/534): here the norm is written out;
* under torch.compile on a CPU, the gradient of max-pooling in front of a flattening: here it is a selection.

And convolutions whose weights differ from lane to lane become grouped ones, slow on a GPU: as products of matrices they
become one batched product.
"""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.functional import linear, pad, unfold

from anml.models.meta_model import MetaModel

# What a lane may be made of: layers whose gradients under vmap are tested.
_LANE_LAYERS = (
    nn.Conv2d, nn.Linear, nn.InstanceNorm2d, nn.GroupNorm, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity,
)  # fmt: skip


class DualLayer(nn.Module):
    """A Linear layer in dual form (dual_linear.py): the steps so far are rows of two buffers, zero for steps to come.

    Buffers, given to every call: learning_rate [], inputs [R, in], deltas [R, out]; probe, zeros of the output's shape,
    whose gradient is the delta of this call.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("learning_rate", "inputs", "deltas", "probe"):
            self.register_buffer(name, torch.zeros(()))
        self.learning_rate: torch.Tensor
        self.inputs: torch.Tensor
        self.deltas: torch.Tensor
        self.probe: torch.Tensor
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, in] to [n, out]."""
        self.seen = x
        similarity = x @ self.inputs.T
        if self.bias is not None:
            similarity = similarity + 1
        change = self.learning_rate * (similarity @ self.deltas)
        return linear(x, self.weight, self.bias) - change + self.probe

    def take_seen(self) -> torch.Tensor:
        """Return the input of the last call, and keep it no longer: it would outlive the function being compiled."""
        seen, self.seen = self.seen, None
        assert seen is not None
        return seen


class PlainInstanceNorm(nn.Module):
    """InstanceNorm2d, written out."""

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, C, H, W] to the same shape."""
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        normed = (x - mean) * (variance + self.eps).rsqrt()
        if self.weight is None:
            return normed
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class PlainMaxPool(nn.Module):
    """MaxPool2d as a selection among shifted images: the first of equal values, as in PyTorch's own."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = (_pair(v) for v in (pool.kernel_size, pool.stride, pool.padding))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, C, H, W] to [n, C, h, w]."""
        rows, columns = self.padding
        x = pad(x, (columns, columns, rows, rows), value=-torch.inf) if rows or columns else x
        down, across = (self._positions(size, axis) for axis, size in enumerate(x.shape[2:]))
        result, *others = (x[:, :, i, j] for i in down for j in across)
        for other in others:
            result = torch.where((other > result) | other.isnan(), other, result)
        return result

    def _positions(self, size: int, axis: int) -> list[slice]:
        """Return, for every offset in the window, where the windows have it."""
        kernel, stride = self.kernel[axis], self.stride[axis]
        reach = (size - kernel) // stride * stride + 1
        return [slice(offset, offset + reach, stride) for offset in range(kernel)]


class MatrixConvolution(nn.Module):
    """Conv2d as a product of its weights with unfolded images."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.kernel, self.stride, self.dilation = (
            _pair(v) for v in (convolution.kernel_size, convolution.stride, convolution.dilation)
        )
        assert not isinstance(convolution.padding, str)
        self.padding = _pair(convolution.padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, C, H, W] to [n, out, h, w]."""
        windows = unfold(x, self.kernel, self.dilation, self.padding, self.stride)
        result = self.weight.flatten(1) @ windows
        result = result if self.bias is None else result + self.bias[:, None]
        return result.unflatten(2, self._size(x.shape[2:]))

    def _size(self, size: Iterable[int]) -> tuple[int, ...]:
        columns = zip(size, self.kernel, self.stride, self.dilation, self.padding, strict=True)
        return tuple((s + 2 * pad - d * (k - 1) - 1) // step + 1 for s, k, step, d, pad in columns)


Rewrite = Callable[[nn.Module], nn.Module | None]


def plain_norm(layer: nn.Module) -> nn.Module | None:
    """Rewrite an InstanceNorm2d."""
    return PlainInstanceNorm(layer) if isinstance(layer, nn.InstanceNorm2d) else None


def plain_pool(layer: nn.Module) -> nn.Module | None:
    """Rewrite a MaxPool2d of the ordinary kind."""
    ordinary = isinstance(layer, nn.MaxPool2d) and not layer.ceil_mode and _pair(layer.dilation) == (1, 1)
    return PlainMaxPool(layer) if isinstance(layer, nn.MaxPool2d) and ordinary else None


def matrix_convolution(layer: nn.Module) -> nn.Module | None:
    """Rewrite a Conv2d of the ordinary kind."""
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        return None
    return MatrixConvolution(layer) if layer.groups == 1 and layer.padding_mode == "zeros" else None


def skeleton(model: MetaModel, linears: Iterable[str], rewrites: Iterable[Rewrite]) -> MetaModel:
    """Return a copy of a model without its weights, the named Linear layers in dual form and others rewritten."""
    net = copy.deepcopy(model)
    for name in linears:
        layer = net.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        net.set_submodule(name, DualLayer(layer))
    for name, layer in list(net.named_modules()):
        for rewritten in filter(None, (rewrite(layer) for rewrite in rewrites)):
            net.set_submodule(name, rewritten)
    return net.to("meta")


def not_for_lanes(model: MetaModel) -> str:
    """Say which layer keeps a model from being trained in lanes, or return an empty string."""
    for name, module in model.named_modules():
        if not any(True for _ in module.children()) and not isinstance(module, _LANE_LAYERS):
            return f"{name} is a {type(module).__name__}, whose second derivatives in lanes are not tested"
    return ""


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
