"""The compiled window attention beside the block products in float64."""

import ctypes

import pytest
import torch
from torch import Tensor

from atlas.ops.banded_attention import WIDEST_WINDOW, Prefix, banded_attention


def inputs(batch: int, heads: int, tokens: int, width: int, window: int, prefix: int) -> tuple[list[Tensor], Tensor]:
    """Queries lie in memory as a linear layer gives them; of the keys before the stretch, some are not there yet."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, tokens, heads, width, generator=generator).transpose(1, 2)
    pairs = [torch.randn(batch, heads, window - 1 + tokens, width, generator=generator) for _ in range(2)]
    before = [torch.randn(heads, prefix, width, generator=generator) for _ in range(2)]
    valid = torch.ones(batch, window - 1 + tokens, dtype=torch.bool)
    valid[0, : window // 2] = False
    return [query, *pairs, *before], valid


def output_and_gradients(arguments: list[Tensor], valid: Tensor, window: int) -> list[Tensor]:
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    prefix = Prefix(*arguments[3:]) if arguments[3].numel() else None
    out = banded_attention(*arguments[:3], valid, window, prefix)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [
        out,
        *torch.autograd.grad((out.sin() * weights).sum(), arguments, allow_unused=True, materialize_grads=True),
    ]


@pytest.mark.parametrize(
    ("tokens", "width", "window", "prefix"),
    [(100, 16, 64, 8), (1, 8, 16, 8), (7, 8, 5, 0), (70, 24, 100, 3), (33, 8, 1, 0), (32, 8, 32, 1)],
)
def test_it_is_the_block_products_in_its_output_and_every_gradient(
    kernel: ctypes.CDLL, tokens: int, width: int, window: int, prefix: int
) -> None:
    arguments, valid = inputs(2, 3, tokens, width, window, prefix)
    found = output_and_gradients(arguments, valid, window)
    wanted = output_and_gradients([argument.double() for argument in arguments], valid, window)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_a_number_that_is_none_reaches_those_who_see_it_and_no_one_before(kernel: ctypes.CDLL) -> None:
    arguments, valid = inputs(1, 2, 80, 8, 16, 4)
    key = 50 + 15  # of token 50
    arguments[1][0, 0, key] = float("nan")
    out = banded_attention(*arguments[:3], valid, 16, Prefix(*arguments[3:]))
    seen = out[0, 0].isnan().any(-1)
    assert seen.nonzero().flatten().tolist() == list(range(50, 66))
    assert not out[0, 1].isnan().any()


def test_what_it_does_not_take_is_left_to_pytorch(kernel: ctypes.CDLL) -> None:
    def compiled(query: Tensor, window: int = 8) -> bool:
        pair = query[:, :, :1].expand(-1, -1, window - 1 + query.shape[2], -1)
        valid = torch.ones(1, pair.shape[2], dtype=torch.bool)
        out = banded_attention(query.requires_grad_(), pair, pair, valid, window, None)
        return "atlas" in str(out.grad_fn.next_functions)  # type: ignore[union-attr]

    query = torch.zeros(1, 1, 4, 8)
    assert compiled(query)
    assert not compiled(query, WIDEST_WINDOW + 1)
    assert not compiled(query.detach().double())
    assert not compiled(query.detach()[..., :6])
