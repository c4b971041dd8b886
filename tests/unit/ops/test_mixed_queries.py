"""The compiled mix of queries beside PyTorch's operations, and these beside the equation, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from atlas.ops.mixed_queries import mixed_queries
from atlas.ops.mixed_queries import torch as plain

SHAPES = [(1, 1, 1, 8), (2, 3, 70, 16), (3, 1, 5, 24), (0, 2, 3, 8), (2, 2, 0, 8)]  # B, H, T, d


def inputs(batch: int, heads: int, tokens: int, width: int) -> list[Tensor]:
    """Of the first row's tokens one has no projection, and one is all zeros; the first head does not mix."""
    generator = torch.Generator().manual_seed(0)
    query, projected = (torch.randn(batch * heads, tokens, width, generator=generator) for _ in range(2))
    projected[:1, -2:] = 0
    query[:1, -1:] = 0
    mix = torch.randn(heads, generator=generator)
    mix[0] = 0
    return [query, 3 * projected, mix]


def outputs_and_gradients(function: Callable[..., Tensor], arguments: list[Tensor]) -> list[Tensor]:
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    out = function(*arguments)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out.sin() * weights).sum(), arguments)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("kernel")
def test_the_kernel_is_pytorch_s_operations(shape: tuple[int, int, int, int]) -> None:
    arguments = inputs(*shape)
    found = outputs_and_gradients(mixed_queries, arguments)
    wanted = outputs_and_gradients(plain.mixed_queries, [one.double() for one in arguments])
    for mine, exact in zip(found, wanted, strict=True):
        size = exact.abs().max().item() if exact.numel() else 0.0
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5 * size)


def test_it_is_the_equation_row_by_row() -> None:
    query, projected, mix = (one.double() for one in inputs(2, 3, 7, 8))
    out = mixed_queries(query, projected, mix)
    for row in range(1, 6):
        for token in range(7):
            added = projected[row, token] / projected[row, token].norm()
            wanted = query[row, token] + mix[row % 3] * added
            torch.testing.assert_close(out[row, token], wanted / wanted.norm())
    assert not out[0, -1].any()


@pytest.mark.usefixtures("kernel")
def test_a_result_does_not_depend_on_layout_or_threads() -> None:
    query, projected, mix = inputs(2, 2, 40, 16)
    threads, found = torch.get_num_threads(), []
    swapped = projected.transpose(0, 1).contiguous().transpose(0, 1)
    try:
        for count, given in (
            (1, [query, projected]),
            (3, [query, swapped]),
            (2, [query.mT.contiguous().mT, projected]),
        ):
            torch.set_num_threads(count)
            found.append(outputs_and_gradients(mixed_queries, [*given, mix]))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.usefixtures("kernel")
def test_what_the_kernel_does_not_take_is_left_to_pytorch() -> None:
    def compiled(arguments: list[Tensor]) -> bool:
        out = mixed_queries(*(part.requires_grad_() for part in arguments))
        return "atlas" in str(out.grad_fn)

    assert compiled(inputs(2, 2, 3, 8))
    assert not compiled(inputs(2, 2, 3, 12))
    assert not compiled([part.double() for part in inputs(2, 2, 3, 8)])
    query, projected, _ = inputs(2, 2, 3, 8)
    with pytest.raises(RuntimeError, match="unflatten"):
        mixed_queries(query, projected, torch.ones(3))
