"""x / ||x|| over the last dimension, with its own backward pass: fewer passes over the data than autograd's."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.ops.first_order import first_order

EPSILON = 1e-12  # a shorter row has no direction: it becomes zeros, and so does its gradient


def unit_rows(x: Tensor) -> Tensor:
    """[..., d] -> rows of length 1; a row of zeros stays zeros, and gets no gradient."""
    rows: Tensor = UnitRows.apply(x)  # type: ignore[no-untyped-call]
    return rows


class UnitRows(torch.autograd.Function):
    """y = x / ||x||,   dx = (dy - y (y . dy)) / ||x||"""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = F.threshold(torch.linalg.vector_norm(x, dim=-1, keepdim=True), EPSILON, inf).reciprocal_()
        unit: Tensor = x * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    @first_order
    def backward(ctx: Any, d_unit: Tensor) -> Tensor:
        unit, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(unit, d_unit).unsqueeze(-1)
        d_x: Tensor = torch.addcmul(d_unit, unit, along, value=-1).mul_(inverse)
        return d_x
