"""The compiled queries, keys and values beside the plain ones in float64."""

import ctypes

import pytest
import torch
from torch import Tensor

from atlas.ops.memory_inputs import memory_inputs
from atlas.ops.memory_inputs import torch as plain


def inputs(batch: int, tokens: int, heads: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    history = torch.randn(batch, 3 + tokens, 3 * heads * width, generator=generator)
    history[0, :5] = 0  # the first tokens of a sequence: a row of zeros stays zeros, without a gradient
    return [history[:, :3], history[:, 3:], torch.randn(4, 3 * heads * width, generator=generator)]


def outputs_and_gradients(function: object, arguments: list[Tensor]) -> list[Tensor]:
    arguments = [argument.detach().requires_grad_() for argument in arguments]
    out = function(*arguments)  # type: ignore[operator]
    weights = [torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part) for part in out]
    loss = torch.stack([(part.sin() * weight).sum() for part, weight in zip(out, weights, strict=True)])
    return [*out, *torch.autograd.grad(loss.sum(), arguments)]


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width"), [(2, 9, 3, 8), (1, 3, 1, 24), (2, 40, 2, 16), (2, 1, 2, 8)]
)
def test_they_are_the_plain_ones_in_outputs_and_every_gradient(
    kernel: ctypes.CDLL, batch: int, tokens: int, heads: int, width: int
) -> None:
    arguments = inputs(batch, tokens, heads, width)
    found = outputs_and_gradients(lambda *all: memory_inputs(*all, heads), arguments)
    exact = [argument.double() for argument in arguments]
    wanted = outputs_and_gradients(lambda *all: plain.memory_inputs(*all, heads), exact)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=3e-6 * theirs.abs().max().item())


def test_what_they_do_not_take_is_left_to_pytorch(kernel: ctypes.CDLL) -> None:
    def node(recent: Tensor, x: Tensor, weight: Tensor, heads: int) -> object:
        return type(memory_inputs(recent, x.detach().requires_grad_(), weight, heads)[0].grad_fn).__name__

    compiled = "GeneratedBackwardFor_atlas_memory_inputs_defaultBackward"
    recent, x, weight = inputs(1, 4, 2, 8)
    assert node(recent, x, weight, 2) == compiled
    assert node(recent, x, weight, 4) != compiled
    assert node(recent.double(), x.double(), weight.double(), 2) != compiled
