"""Rotary position embedding (RoFormer), whose backward pass is the rotation back.

Legend: T tokens, d head width; component i of the left half turns with component i of the right half.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas.ops.first_order import first_order

ROPE_BASE = 10_000.0


class Rotary:
    """Turns each token of a stretch by its position. The angles are made once, for all layers, queries and keys."""

    def __init__(self, first: int, place: Tensor | None = None) -> None:
        """`place`: `first` as a float64 tensor, for a graph, which would keep the number that it was recorded with."""
        self.first = first  # number of the stretch's first token in its sequence
        self._place: int | Tensor = first if place is None else place
        self._angles: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """[..., T, d] -> [..., T, d]"""
        kind = x.shape[-2], x.shape[-1] // 2, x.dtype, x.device
        if kind not in self._angles:
            self._angles[kind] = _angles(self._place, *kind)
        return rotated(x, *self._angles[kind])


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., T, d], cos and sin [T, d/2] -> [..., T, d]"""
    turned: Tensor = Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return turned


def _angles(
    first: int | Tensor, tokens: int, half: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Their cos and sin [T, d/2]."""
    # In float64: at position 10^6 float32 would be off by 0.06 rad.
    frequency = ROPE_BASE ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    angle = (torch.arange(tokens, dtype=torch.float64, device=device) + first).unsqueeze(-1) * frequency
    return angle.cos().to(dtype), angle.sin().to(dtype)


class Rotation(torch.autograd.Function):
    """(x [..., T, d], cos [T, d/2], sin [T, d/2]) -> [left cos - right sin, left sin + right cos]"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    @first_order
    def backward(ctx: Any, d_turned: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(d_turned, cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    out = x.new_empty(x.shape)
    left, right = x.chunk(2, dim=-1)
    new_left, new_right = out.chunk(2, dim=-1)
    torch.mul(left, cos, out=new_left).addcmul_(right, sin, value=-direction)
    torch.mul(right, cos, out=new_right).addcmul_(left, sin, value=direction)
    return out
