"""Native blocks in a model's own place: the same outputs and gradients as the modules they replace."""

import copy

import pytest
import torch
from torch import nn

from anml.models import build_model
from anml.models.meta_model import MetaModel
from anml.native import available
from anml.native.blocks import NativeStack, use_native_blocks, with_native_blocks

pytestmark = pytest.mark.native
CONVNET = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": 5}}
MODELS = {
    "anml": ("anml", {"rln_chs": 6, "nm_chs": 4}),
    "sanml, pooled": ("sanml", {"rln_chs": 19, "pool_rln_output": True}),
    "convnet": ("classifier", CONVNET),
    "anml-encoder": ("classifier", {"encoder": "anml-encoder", "encoder_args": {"rln_chs": 4, "nm_chs": 3}}),
}


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if not available("train"):
        pytest.skip(available("train").reason)


def pair(kind: str) -> tuple[MetaModel, MetaModel]:
    name, args = MODELS[kind]
    plain = build_model(name, args, (1, 28, 28), seed=1).double()
    native = copy.deepcopy(plain)
    use_native_blocks(native)
    return plain, native


def gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(model(images).logsumexp(1).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("images", [1, 5, 40])
@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_gradients_are_those_of_the_modules(kind, images):
    plain, native = pair(kind)
    assert any(isinstance(module, NativeStack) for module in native.modules())
    batch = torch.rand(images, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(native(batch), plain(batch), rtol=0, atol=1e-12)
    expected = gradients(plain, batch)
    for name, gradient in gradients(native, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-11, msg=name)
        assert not name.endswith("conv.bias") or not gradient.any()


def test_gradients_repeat_to_the_bit_however_fast_each_thread_is():
    native = pair("sanml, pooled")[1].float()
    images = torch.rand(84, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = [gradients(native, images) for _ in range(20)]
    finally:
        torch.set_num_threads(before)
    assert [name for found in others for name, value in found.items() if not torch.equal(value, first[name])] == []


def test_only_the_last_forward_pass_can_be_differentiated():
    _, native = pair("anml")
    losses = [native(torch.rand(2, 1, 28, 28, dtype=torch.float64)).sum() for _ in range(2)]
    with pytest.raises(RuntimeError, match="native blocks remember their last forward pass only"):
        losses[0].backward()
    losses[1].backward()


def test_gradients_cannot_be_differentiated_again():
    _, native = pair("anml")
    loss = native(torch.rand(2, 1, 28, 28, dtype=torch.float64)).logsumexp(1).sum()
    gradients = torch.autograd.grad(loss, list(native.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.cat([gradient.flatten() for gradient in gradients]).square().sum().backward()


def test_parameters_keep_their_names_and_memory():
    plain, native = pair("anml")
    assert list(native.state_dict()) == list(plain.state_dict())
    image = torch.rand(1, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = native(image)
    with torch.no_grad():
        native.get_parameter("rln.convBlock2.conv.weight").mul_(-1)
    assert not torch.equal(native(image), before)


def test_a_native_copy_shares_the_parameters():
    plain, _ = pair("anml")
    native = with_native_blocks(plain)
    assert native is not None
    assert not any(isinstance(module, NativeStack) for module in plain.modules())
    assert all(native.get_parameter(name) is parameter for name, parameter in plain.named_parameters())


def test_what_the_kernels_cannot_run_stays_as_it_is():
    args = {"encoder": "convnet", "encoder_args": {"num_blocks": 2, "num_filters": 5, "kernel_size": 5}}
    for name, arguments in (("classifier", args), ("oml", {"num_filters": 4, "strides": [2, 1, 2], "hidden": 9})):
        model = build_model(name, arguments, (1, 28, 28), seed=1)
        use_native_blocks(model)
        assert not any(isinstance(module, NativeStack) for module in model.modules())
        assert with_native_blocks(model) is None
