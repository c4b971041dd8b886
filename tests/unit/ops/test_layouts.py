"""Kernels take tensors in every layout, gradients included, and other dtypes and masks as PyTorch's operations do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from atlas.config import Kernels
from atlas.kernels.library import use
from atlas.ops.banded_attention import Prefix, banded_attention
from atlas.ops.banded_attention.torch import block_products, one_kernel
from atlas.ops.rms_norm import rms_norm
from atlas.ops.swiglu import swiglu
from experiments.kernel_fuzz.cases import run_case

pytestmark = pytest.mark.usefixtures("kernel")


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float32)


def with_both(work: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    found = work()
    use(Kernels.torch)
    wanted = work()
    use(Kernels.auto)
    return found, wanted


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("number", range(120))
def test_random_layouts_dtypes_and_shapes(number: int) -> None:
    """Cases of `python -m experiments.kernel_fuzz`."""
    run_case(1, number)


def test_the_gradient_of_a_sum_whose_elements_share_one_place() -> None:
    """[64, 256, 128]: as large as a model's, so that freed memory is used anew."""
    x, weight = randn(64, 256, 128).requires_grad_(), randn(128).requires_grad_()
    found, wanted = with_both(lambda: list(torch.autograd.grad(rms_norm(x, weight).sum(), (x, weight))))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def attention_gradients(query: Tensor, window: int = 8) -> list[Tensor]:
    B, H, T, d = query.shape
    keys, values = randn(B, H, window - 1 + T, d).requires_grad_(), randn(B, H, window + T - 1, d).requires_grad_()
    valid = torch.ones(B, window - 1 + T, dtype=torch.bool)
    out = banded_attention(query, keys, values, valid, window, None)
    return [out, *torch.autograd.grad(out.square().sum(), (query, keys, values))]


def test_the_default_dtype_has_no_say() -> None:
    query = randn(2, 2, 20, 8).requires_grad_()
    wanted = attention_gradients(query)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = attention_gradients(query)
    finally:
        torch.set_default_dtype(before)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_queries_that_overlap() -> None:
    query = randn(1, 1, 400, 1).flatten().as_strided((2, 2, 20, 8), (9, 3, 8, 1)).detach().requires_grad_()
    found, wanted = with_both(lambda: attention_gradients(query))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_prefix_of_another_precision_is_taken_in_that_of_the_queries(dtype: torch.dtype) -> None:
    query, pairs = randn(1, 2, 5, 8), randn(1, 2, 12, 8)
    valid = torch.ones(1, 12, dtype=torch.bool)
    prefix = Prefix(randn(2, 3, 8).to(dtype), randn(2, 4, 8)[:, :3].to(dtype))
    found, wanted = with_both(lambda: [banded_attention(query, pairs, pairs, valid, 8, prefix)])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_a_mask_must_be_bool(dtype: torch.dtype) -> None:
    query = randn(1, 1, 4, 8)
    with pytest.raises(TypeError) as refused:
        banded_attention(query, query, query, torch.ones(1, 4, dtype=dtype), 1, None)
    assert str(refused.value) == f"banded_attention: valid is {dtype}, must be torch.bool"


@pytest.mark.parametrize("with_prefix", [False, True])
def test_a_key_that_is_not_valid_is_hidden_inside_the_stretch_too(with_prefix: bool) -> None:
    """The last 6 tokens see no key at all: without a prefix they read zeros, and have no gradient."""
    window, B, H, T, d = 4, 2, 2, 21, 8
    query = randn(B, H, T, d).requires_grad_()
    keys, values = randn(B, H, window - 1 + T, d).requires_grad_(), randn(B, H, T + window - 1, d).requires_grad_()
    valid = torch.rand(B, window - 1 + T, generator=torch.Generator().manual_seed(0)) < 0.6
    valid[0, -9:] = False
    prefix = Prefix(randn(H, 3, d), randn(H, 3, d)) if with_prefix else None
    seen = torch.zeros(B, 1, T, window - 1 + T, dtype=torch.bool)
    for t in range(T):
        seen[:, 0, t, t : t + window] = valid[:, t : t + window]
    all_keys, all_values = keys, values
    if prefix is not None:
        all_keys, all_values = (
            torch.cat((first.expand(B, -1, -1, -1), rest), dim=2)
            for first, rest in zip(prefix, (keys, values), strict=True)
        )
        seen = torch.cat((torch.ones(B, 1, T, 3, dtype=torch.bool), seen), dim=-1)
    scores = (query @ all_keys.mT * d**-0.5).masked_fill(~seen, -1e30)
    wanted = torch.softmax(scores, -1) * seen @ all_values
    for form in (banded_attention, block_products, one_kernel):
        out = form(query, keys, values, valid, window, prefix)
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
        if not with_prefix:
            assert not out[0, :, -6:].any()
        found, expected = (
            torch.autograd.grad(result.square().sum(), (query, keys, values), retain_graph=True)
            for result in (out, wanted)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, 7, 17, 33])
def test_an_odd_width_has_no_halves(width: int) -> None:
    with pytest.raises(ValueError, match=rf"^swiglu: x is \[3, {width}\], its last dimension must be even$"):
        swiglu(torch.ones(3, width))
