"""Tensors of a given shape that lie in memory in every way that PyTorch allows."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor


def contiguous(x: Tensor, random: Random) -> Tensor:
    return x


def transposed(x: Tensor, random: Random) -> Tensor:
    order = random.sample(range(x.dim()), x.dim())
    inverse = [order.index(dim) for dim in range(x.dim())]
    return x.permute(order).contiguous().permute(inverse)


def sliced(x: Tensor, random: Random) -> Tensor:
    """Cut out of a larger tensor, with steps of 1 to 3 in each dimension; what lies between is NaN."""
    cuts = [(random.randint(0, 2), random.randint(1, 3)) for _ in x.shape]
    shape = [first + step * size + 1 for (first, step), size in zip(cuts, x.shape, strict=True)]
    whole = torch.full(shape, float("nan"), dtype=x.dtype) if x.is_floating_point() else x.new_ones(shape)
    for dim, ((first, step), size) in enumerate(zip(cuts, x.shape, strict=True)):
        whole = whole.movedim(dim, 0)[first : first + step * size : step].movedim(0, dim)
    return whole.copy_(x)


def expanded(x: Tensor, random: Random) -> Tensor:
    """Equal along some dimensions, which have stride 0; along all of them, as the gradient of a sum."""
    dims = range(x.dim()) if random.random() < 0.3 else [dim for dim in range(x.dim()) if random.random() < 0.5]
    small = x
    for dim in dims:
        small = small.narrow(dim, 0, min(1, x.shape[dim]))
    return small.clone().expand(x.shape)


def overlapping(x: Tensor, random: Random) -> Tensor:
    """Every row begins a few elements after the one before."""
    strides = [random.randint(0, 3) for _ in x.shape]
    if not x.numel() or not x.dim():
        return x
    last = sum(stride * (size - 1) for stride, size in zip(strides, x.shape, strict=True))
    return x.flatten().repeat(last // x.numel() + 1)[: last + 1].as_strided(x.shape, strides)


def negative(x: Tensor, random: Random) -> Tensor:
    return torch._neg_view(x.clone()) if x.is_floating_point() else x


LAYOUTS = (contiguous, transposed, sliced, expanded, overlapping, negative)


def lay_out(x: Tensor, random: Random) -> Tensor:
    """In some layout, whose values may differ from those of x."""
    return random.choice(LAYOUTS)(x, random)
