"""The parallel form of the Q-K projection against the sums written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atlas.ops.qk_projection import Accumulator, project
from atlas.ops.qk_projection.reference import projected_queries
from atlas.ops.qk_projection.torch import BLOCK, CausalProducts

ROWS, TOKENS, WIDTH = 2, 2 * BLOCK + 9, 3


def leaves() -> list[Tensor]:
    """Queries and keys [N, T, d], persistent keys [N, P, d]."""
    torch.manual_seed(0)
    query, key = torch.randn(2, ROWS, TOKENS, WIDTH, dtype=torch.float64)
    prefix = torch.randn(ROWS, 4, WIDTH, dtype=torch.float64)
    return [tensor.requires_grad_() for tensor in (query, key, prefix)]


@pytest.mark.parametrize("per_key", [False, True])
@pytest.mark.parametrize("first", [TOKENS, 1, 50, BLOCK, BLOCK + 1])
def test_the_parallel_form_equals_the_steps(per_key: bool, first: int) -> None:
    query, key, prefix = inputs = leaves()
    matrix, norm = prefix.mT @ prefix, prefix.square().sum((1, 2))
    early, sums = project(Accumulator(matrix, norm, 0), query[:, :first], key[:, :first], per_key=per_key)
    parts = [early]
    if first < TOKENS:
        late, sums = project(sums, query[:, first:], key[:, first:], per_key=per_key)
        parts.append(late)
    fast = torch.cat(parts, dim=1)
    rows = zip(query, key, matrix, norm, strict=True)
    slow = torch.stack([projected_queries(*row, period=None, per_key=per_key) for row in rows])
    weight = torch.randn(fast.shape, dtype=fast.dtype)
    torch.testing.assert_close(fast, slow)
    found, expected = (torch.autograd.grad((out * weight).sum(), inputs, retain_graph=True) for out in (fast, slow))
    torch.testing.assert_close(found, expected)
    assert sums.tokens == TOKENS


def test_autocast_does_not_round_the_sums() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(ROWS, size, WIDTH, requires_grad=True) for size in (WIDTH, TOKENS, TOKENS)]
    weight = torch.randn(ROWS, TOKENS, WIDTH)

    def outputs_and_gradients() -> list[Tensor]:
        products, total = CausalProducts.apply(*inputs)
        return [products, total, *torch.autograd.grad((products * weight).sum() + total.sum(), inputs)]

    expected = outputs_and_gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outputs_and_gradients()
    assert {tensor.dtype for tensor in found} == {torch.float32}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
