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

from atlas.kernels.signatures import ProductSizes
from atlas.ops.compiled import addresses, dense, rows


class CompiledProducts(torch.autograd.Function):
    """As `CausalProducts`, with the library before its arguments."""

    @staticmethod
    def forward(ctx: Any, kernel: ctypes.CDLL, start: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        query, key = dense(query), dense(key)
        sizes = ProductSizes(*query.shape, torch.get_num_threads())
        kept = query.new_empty(sizes.rows, kernel.atlas_products_floats(byref(sizes)))
        out, total = query.new_empty(query.shape), start.clone(memory_format=torch.contiguous_format)
        given = byref(sizes), byref(rows(query)), byref(rows(key))
        kernel.atlas_products_forward(*given, *addresses(kept), byref(rows(out)), *addresses(total))
        ctx.save_for_backward(query, key, kept)
        ctx.kernel, ctx.sizes = kernel, sizes
        return out, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_total: Tensor) -> tuple[Tensor | None, ...]:
        query, key, kept = ctx.saved_tensors
        d_out = dense(d_out)
        d_query, d_key = query.new_empty(query.shape), key.new_empty(key.shape)
        d_start = d_total.clone(memory_format=torch.contiguous_format)
        tokens = [byref(rows(part)) for part in (query, key, d_out, d_query, d_key)]
        ctx.kernel.atlas_products_backward(byref(ctx.sizes), *tokens[:3], *addresses(kept, d_start), *tokens[3:])
        return None, d_start, d_query, d_key
