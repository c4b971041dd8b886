"""The two forms of banded attention agree; `models/test_attention.py` compares with a full masked softmax."""

import pytest
import torch
from torch import Tensor

from atlas.ops.banded_attention.torch import Prefix, block_products, one_kernel

B, H, D = 2, 3, 4


@pytest.mark.parametrize("prefix_size", [0, 5])
@pytest.mark.parametrize("window", [1, 4, 9])
@pytest.mark.parametrize("tokens", [1, 8, 13])
def test_both_forms_agree_in_outputs_and_gradients(window: int, tokens: int, prefix_size: int) -> None:
    generator = torch.Generator().manual_seed(window * tokens)
    cached = window - 1

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, keys, values = draw(B, H, tokens, D), draw(B, H, cached + tokens, D), draw(B, H, cached + tokens, D)
    pairs = [draw(H, prefix_size, D), draw(H, prefix_size, D)] if prefix_size else []
    valid = torch.ones(B, cached + tokens, dtype=torch.bool)
    valid[1, :cached] = False
    found = []
    for form in (block_products, one_kernel):
        out = form(query, keys, values, valid, window, Prefix(*pairs) if pairs else None)
        found.append([out, *torch.autograd.grad(out.sin().sum(), [query, keys, values, *pairs])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
