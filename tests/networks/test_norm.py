import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from modistill.networks.convolution import channels_last
from modistill.networks.norm import norm_activation


def plain(x, bias, weight, shift, slope):
    x = x if bias is None else x + bias.reshape(-1, *(1,) * (x.ndim - 2))
    return functional.leaky_relu(functional.instance_norm(x, weight=weight, bias=shift), slope)


def example(batch=2, dims=3, weight=(1.0, -0.5, 0.8), dtype=torch.double):
    torch.manual_seed(3)
    x = torch.randn(batch, 3, *(3, 4, 5)[:dims], dtype=dtype) * 2 + 1
    given = [x, torch.randn(3, dtype=dtype), torch.tensor(weight, dtype=dtype), torch.tensor([0.3, -0.2, 0.1], dtype=dtype)]
    return [tensor.requires_grad_() for tensor in given]


def gradients(y, inputs):
    direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return torch.autograd.grad(y, inputs, direction)


def test_by_hand():
    # Voxels 1 and 3: mean 2, variance 1; z = 2 * (-1, 1) + 1 = (-1, 3); slope 0.1.
    y = norm_activation(torch.tensor([[[[1.0, 3.0]]]]), weight=torch.tensor([2.0]), shift=torch.tensor([1.0]), slope=0.1, eps=0)
    torch.testing.assert_close(y, torch.tensor([[[[-0.1, 3.0]]]]))


@pytest.mark.parametrize("order", ["plain", "channels last"])
@pytest.mark.parametrize("weight", [(1.0, -0.5, 0.8), (1.0, 0.0, 1e-9)], ids=["turned back", "kept"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_equals_the_plain_form(dims, batch, weight, order):
    x, bias, weight, shift = inputs = example(batch, dims, weight)
    ours = norm_activation(
        channels_last(x) if order == "channels last" else x, bias=bias, weight=weight, shift=shift, slope=0.01
    )
    theirs = plain(x, bias, weight, shift, 0.01)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_without_learned_parameters(slope):
    x, bias, *_ = example()
    ours, theirs = norm_activation(x, bias=bias, slope=slope), plain(x, bias, None, None, slope)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, [x])[0], gradients(theirs, [x])[0])


@pytest.mark.parametrize("weight", [(1.0, -0.5, 0.8), (1.0, 0.0, 0.8)], ids=["turned back", "kept"])
def test_numerical_gradient(weight):
    x, _, weight, shift = example(weight=weight)
    assert torch.autograd.gradcheck(lambda x, w, b: norm_activation(x, weight=w, shift=b, slope=0.2), (x, weight, shift))


def test_the_gradient_of_a_cancelled_bias_is_exactly_zero():
    x, bias, weight, shift = example()
    norm_activation(x, bias=bias, weight=weight, shift=shift, slope=0.01).square().sum().backward()
    assert torch.equal(bias.grad, torch.zeros(3, dtype=torch.double))


def test_keeps_one_map_where_the_plain_form_keeps_two():
    def kept(function):
        seen = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        x, _, weight, shift = example()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = function(x * 1, None, weight, shift, 0.01)
            y * y  # whoever comes next keeps the output
        return sum(tensor.shape == y.shape for tensor in seen.values())

    def ours(x, bias, weight, shift, slope):
        return norm_activation(x, bias=bias, weight=weight, shift=shift, slope=slope)

    assert (kept(ours), kept(plain)) == (1, 2)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-50, 50), sign=st.sampled_from([-1.0, 1.0]))
def test_output_does_not_depend_on_a_positive_scale_or_an_offset_of_its_input(scale, offset, sign):
    x, _, weight, shift = example()
    once = norm_activation(x, weight=sign * weight, shift=shift, slope=0.01, eps=0)
    torch.testing.assert_close(norm_activation(scale * x + offset, weight=sign * weight, shift=shift, slope=0.01, eps=0), once)


def test_sums_over_many_voxels_are_exact():
    """Added up one after the other in single precision, a million voxels miss the deviation by some 1e-4."""
    torch.manual_seed(0)
    x = channels_last(torch.randn(1, 2, 64, 128, 128) + 0.7).requires_grad_()
    direction = channels_last(torch.rand(1, 2, 64, 128, 128))
    exact = x.detach().double().requires_grad_()
    ours, theirs = norm_activation(x, slope=0.01), plain(exact, None, None, None, 0.01)
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=1e-6)
    mine, other = torch.autograd.grad(ours, x, direction)[0], torch.autograd.grad(theirs, exact, direction.double())[0]
    torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("compiling", [False, True])
def test_memory_order_stays(compiling, monkeypatch):
    """Strides are compared, not flags: one sample counts as channels-last only with the right stride of its batch axis."""
    x, bias, weight, shift = example(batch=1)
    x = channels_last(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    assert norm_activation(x, bias=bias, weight=weight, shift=shift, slope=0.01).stride() == x.stride()


def test_half_precision_stays_close():
    x, _, weight, shift = example(dtype=torch.float)
    y = norm_activation(x.bfloat16(), weight=weight, shift=shift, slope=0.01)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), plain(x, None, weight, shift, 0.01), rtol=0.03, atol=0.03)
    inputs = [x, weight, shift]
    for mine, other in zip(gradients(y.float(), inputs), gradients(plain(x, None, weight, shift, 0.01), inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=0.1, atol=0.1)


def test_the_compiled_form_is_the_same(monkeypatch):
    inputs = example()
    x, bias, weight, shift = inputs
    eager = gradients(norm_activation(x, bias=bias, weight=weight, shift=shift, slope=0.01), inputs)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    traced = gradients(norm_activation(x, bias=bias, weight=weight, shift=shift, slope=0.01), inputs)
    for mine, other in zip(eager, traced, strict=True):
        torch.testing.assert_close(mine, other)
