"""The compiled causal products beside PyTorch's (see `test_qk_projection.py`) in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from atlas.ops.qk_projection import cpp
from atlas.ops.qk_projection import torch as plain


def outputs_and_gradients(function: Callable[..., tuple[Tensor, ...]], arguments: list[Tensor]) -> list[Tensor]:
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    out = function(*arguments)
    weights = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in out]
    loss = torch.stack([(part.sin() * weight).sum() for part, weight in zip(out, weights, strict=True)]).sum()
    return [*out, *torch.autograd.grad(loss, arguments)]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (5, 8), (64, 16), (65, 24), (200, 8)])
def test_they_are_the_plain_ones_in_outputs_and_every_gradient(tokens: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    start = 0.1 * torch.randn(3, width, width, generator=generator)  # not symmetric
    tokens_of = [0.2 * torch.randn(3, width, tokens + 2, generator=generator).mT[:, 1:-1] for _ in range(2)]
    arguments = [start, *tokens_of]
    found = outputs_and_gradients(cpp.causal_products, arguments)
    wanted = outputs_and_gradients(plain.causal_products, [argument.double() for argument in arguments])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=3e-6 * theirs.abs().max().item())
