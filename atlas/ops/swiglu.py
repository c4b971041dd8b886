"""silu(x1) * x2: on the CPU by the compiled kernel of `atlas/kernels/swiglu.cpp`."""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlas.kernels.signatures import SwigluSizes
from atlas.ops.compiled import addresses, kernels_for
from atlas.ops.fast_weights import gated_units


def swiglu(x: Tensor) -> Tensor:
    """[x1, x2] side by side, [..., 2D] -> [..., D]"""
    if kernel := kernels_for((x,), [x.shape[-1] // 2]):
        out: Tensor = CompiledSwiglu.apply(kernel, x)  # type: ignore[no-untyped-call]
        return out
    return gated_units(x)


class CompiledSwiglu(torch.autograd.Function):
    """(library, x) -> the same as `gated_units`"""

    @staticmethod
    def forward(ctx: Any, kernel: ctypes.CDLL, x: Tensor) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1] // 2
        sizes = SwigluSizes(x.numel() // (2 * width), width, torch.get_num_threads())
        out = x.new_empty(*x.shape[:-1], width)
        kernel.atlas_swiglu_forward(byref(sizes), *addresses(x, out))
        ctx.save_for_backward(x)
        ctx.kernel, ctx.sizes = kernel, sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        d_out, d_x = d_out.contiguous(), torch.empty_like(x)
        ctx.kernel.atlas_swiglu_backward(byref(ctx.sizes), *addresses(x, d_out, d_x))
        return None, d_x
