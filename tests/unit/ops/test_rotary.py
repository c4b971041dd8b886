import torch
from torch import Tensor

from atlas.ops.rotary import ROPE_BASE, Rotary


def as_complex_numbers(x: Tensor, first: int) -> Tensor:
    """left + i right, times e^(i position frequency)."""
    half = x.shape[-1] // 2
    positions = torch.arange(first, first + x.shape[-2], dtype=torch.float64)
    angle = torch.outer(positions, ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


def test_a_token_is_turned_by_its_position_and_its_gradient_back() -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 3, 2, 5, 6, dtype=torch.float64)
    x.requires_grad_()
    ours, theirs = Rotary(7)(x), as_complex_numbers(x, 7)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    (mine,), (expected,) = (torch.autograd.grad(out, x, gradient) for out in (ours, theirs))
    torch.testing.assert_close(mine, expected, rtol=1e-13, atol=1e-13)


def test_positions_are_relative() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 5, 6, dtype=torch.float64)
    near = Rotary(0)(query) @ Rotary(0)(key).mT
    far = Rotary(1_000_000)(query) @ Rotary(1_000_000)(key).mT
    torch.testing.assert_close(near, far)
