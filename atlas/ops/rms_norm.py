"""w x / sqrt(mean(x^2) + epsilon) over the last dimension: on the CPU by the kernel of `atlas/kernels/norm.cpp`."""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from atlas.kernels.signatures import NormSizes
from atlas.ops.compiled import addresses, kernels_for

BLOCK_ROWS = 64  # whose share of the weight's gradient is summed up by one thread


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """[..., D], weight [D] -> [..., D]. Epsilon is that of `torch.nn.RMSNorm`: the precision of x."""
    if kernel := kernels_for((x, weight), [x.shape[-1]]):
        out: Tensor = CompiledNorm.apply(kernel, x, weight)  # type: ignore[no-untyped-call]
        return out
    return F.rms_norm(x, weight.shape, weight)


class CompiledNorm(torch.autograd.Function):
    """(library, x, weight) -> the same as `torch.nn.functional.rms_norm`"""

    @staticmethod
    def forward(ctx: Any, kernel: ctypes.CDLL, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        sizes = NormSizes(rows, width, BLOCK_ROWS, torch.get_num_threads(), torch.finfo(x.dtype).eps)
        out, inverse = torch.empty_like(x), x.new_empty(rows)
        kernel.atlas_norm_forward(byref(sizes), *addresses(x, weight, out, inverse))
        ctx.save_for_backward(x, weight, inverse)
        ctx.kernel, ctx.sizes = kernel, sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(x), x.new_empty(-(-inverse.shape[0] // BLOCK_ROWS), x.shape[-1])
        tensors = addresses(x, weight, inverse, d_out.contiguous(), d_x, d_weight)
        ctx.kernel.atlas_norm_backward(byref(ctx.sizes), *tensors)
        return None, d_x, d_weight.sum(0)
