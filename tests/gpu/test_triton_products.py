"""The Triton products of the Q-K projection compiled for the device, beside float64; more in `tests/triton`."""

from __future__ import annotations

import pytest
import torch

from atlas.ops.qk_projection import torch as plain
from atlas.ops.qk_projection import triton
from tests.triton.test_triton_products import inputs, outputs_and_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LIMIT = 1e-2  # ||ours - exact|| / ||exact||; the products are in TF32


@pytest.mark.parametrize("tokens", [1, 32, 75, 500])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_they_are_the_products_and_give_the_same_bits_again(width: int, tokens: int) -> None:
    given = inputs(8, tokens, width)
    exact = outputs_and_gradients(plain, [part.double() for part in given])
    found, again = (outputs_and_gradients(triton, [part.cuda() for part in given]) for _ in range(2))
    for ours, theirs, twice in zip(found, exact, again, strict=True):
        assert (ours.cpu().double() - theirs).norm() <= LIMIT * theirs.norm()
        assert torch.equal(ours, twice)
