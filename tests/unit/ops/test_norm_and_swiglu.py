"""The compiled RMSNorm and SwiGLU beside the library's in float64."""

import ctypes
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.ops.fast_weights import gated_units
from atlas.ops.rms_norm import rms_norm
from atlas.ops.swiglu import swiglu

EPSILON = torch.finfo(torch.float32).eps
SHAPES = [(1, 8), (3, 130, 16), (2, 5, 7, 24)]


def inputs(*shape: int) -> list[Tensor]:
    """Among the rows one of zeros, one so short that epsilon matters, and one so long that it does not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    rows = x.view(-1, shape[-1])
    rows[-2:-1] = 0
    rows[0] *= 1e-4
    rows[-1] *= 30
    return [x, torch.randn(shape[-1], generator=generator)]


def outputs_and_gradients(function: Callable[..., Tensor], arguments: list[Tensor]) -> list[Tensor]:
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    out = function(*arguments)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out.sin() * weights).sum(), arguments)]


def compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], arguments: list[Tensor]) -> None:
    found = outputs_and_gradients(ours, arguments)
    wanted = outputs_and_gradients(theirs, [argument.double() for argument in arguments])
    for mine, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=2e-6 * exact.abs().max().item())


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_is_the_library_s(shape: tuple[int, ...]) -> None:
    compare(rms_norm, lambda x, weight: F.rms_norm(x, weight.shape, weight, EPSILON), inputs(*shape))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gated_units_are_the_library_s(shape: tuple[int, ...]) -> None:
    compare(swiglu, gated_units, [torch.cat([inputs(*shape)[0], inputs(*shape)[0].flip(0)], dim=-1)])


@pytest.mark.usefixtures("kernel")
def test_a_result_does_not_depend_on_layout_or_threads() -> None:
    x, weight = torch.randn(8, 200, 16, generator=torch.Generator().manual_seed(0)), torch.ones(16)
    threads, found = torch.get_num_threads(), []
    try:
        for count, given in ((1, x), (3, x), (2, x.transpose(0, 1).contiguous().transpose(0, 1))):
            torch.set_num_threads(count)
            found.append(outputs_and_gradients(rms_norm, [given, weight]) + outputs_and_gradients(swiglu, [given]))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.usefixtures("kernel")
def test_a_number_that_is_none_stays_none() -> None:
    for value in (float("nan"), float("inf")):
        x = torch.ones(3, 16)
        x[1, 2] = value
        norm, units = rms_norm(x, torch.ones(16)), swiglu(x)
        for out in (norm, units):
            assert out[[0, 2]].isfinite().all()
        assert torch.equal(norm.isnan(), F.rms_norm(x, (16,), torch.ones(16)).isnan())
        assert torch.equal(units.isnan(), gated_units(x).isnan())


def test_what_they_do_not_take_is_left_to_pytorch(kernel: ctypes.CDLL) -> None:
    def compiled(out: Tensor) -> bool:
        return "atlas" in str(out.grad_fn.next_functions)  # type: ignore[union-attr]

    zeros = partial(torch.zeros, requires_grad=True)
    assert compiled(rms_norm(zeros(2, 8), zeros(8)))
    assert not compiled(rms_norm(zeros(2, 12), zeros(12)))
    assert not compiled(rms_norm(zeros(2, 8).double(), zeros(8).double()))
    assert compiled(swiglu(zeros(2, 16)))
    assert not compiled(swiglu(zeros(2, 24)))
