"""Causal products of the Q-K projection by the compiled kernel of `atlas/kernels/products.cpp`.

The same function as `CausalProducts` of `qk_projection.py`; `tests/unit/ops/test_compiled_products.py` compares both.
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlas.kernels.library import library
from atlas.kernels.signatures import ProductSizes, Vectors

GRANULE = 8  # the head width is a multiple of it: the narrowest vector of the kernel


def products_kernel(*tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled library if it takes these tensors: float32 on a CPU, an even head width."""
    if any(part.device.type != "cpu" or part.dtype != torch.float32 for part in tensors):
        return None
    return None if tensors[0].shape[-1] % GRANULE else library()


class CompiledProducts(torch.autograd.Function):
    """As `CausalProducts`, with the library before its arguments."""

    @staticmethod
    def forward(ctx: Any, kernel: ctypes.CDLL, start: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        query, key = _dense_rows(query), _dense_rows(key)
        sizes = ProductSizes(*query.shape, torch.get_num_threads())
        kept = query.new_empty(sizes.rows, kernel.atlas_products_floats(byref(sizes)))
        out, total = query.new_empty(query.shape), start.clone(memory_format=torch.contiguous_format)
        given = byref(sizes), byref(_vectors(query)), byref(_vectors(key))
        kernel.atlas_products_forward(*given, kept.data_ptr(), byref(_vectors(out)), total.data_ptr())
        ctx.save_for_backward(query, key, kept)
        ctx.kernel, ctx.sizes = kernel, sizes
        return out, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_total: Tensor) -> tuple[Tensor | None, ...]:
        query, key, kept = ctx.saved_tensors
        d_out = _dense_rows(d_out)
        d_query, d_key = query.new_empty(query.shape), key.new_empty(key.shape)
        d_start = d_total.clone(memory_format=torch.contiguous_format)
        vectors = [byref(_vectors(part)) for part in (query, key, d_out, d_query, d_key)]
        ctx.kernel.atlas_products_backward(
            byref(ctx.sizes), *vectors[:3], kept.data_ptr(), d_start.data_ptr(), *vectors[3:]
        )
        return None, d_start, d_query, d_key


def _dense_rows(part: Tensor) -> Tensor:
    return part if part.stride(2) == 1 else part.contiguous()


def _vectors(part: Tensor) -> Vectors:
    return Vectors(part.data_ptr(), part.stride(0), part.stride(1))
