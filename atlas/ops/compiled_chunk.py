"""One chunk of the dual form by the compiled kernel of `atlas/kernels/chunk.cpp`: the same function as `FusedChunk`.

A chunk as an autograd function of some thirty small operations spends half its time between them. The kernel takes a
row at a time, whose weights and intermediate values fit the cache of a core, and rows are shared out among threads.
`tests/unit/ops/test_compiled_chunk.py` compares both, gradients too.
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlas.kernels.library import library
from atlas.kernels.signatures import Inputs, Sizes, Tokens

GRANULE = 8  # widths are multiples of it: the narrowest vector of the kernel
LONGEST_PREFIX = 128  # tokens of a chunk whose Gram products still fit the cache


def kernel_for(prefix: bool, down: Tensor, query: Tensor, features: Tensor) -> ctypes.CDLL | None:
    """The compiled library if it takes such a chunk: float32 on a CPU, even widths, no long prefix."""
    if down.device.type != "cpu" or down.dtype != torch.float32 or query.dtype != torch.float32:
        return None
    width, hidden = down.shape[1:]
    if width % GRANULE or hidden % GRANULE or features.shape[2] % GRANULE:
        return None
    return None if prefix and query.shape[1] > LONGEST_PREFIX else library()


class CompiledChunk(torch.autograd.Function):
    """As `FusedChunk`, with the library before its arguments."""

    @staticmethod
    def forward(
        ctx: Any, kernel: ctypes.CDLL, prefix: bool, step: bool, down: Tensor, up: Tensor, *fields: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        down, up = down.contiguous(), up.contiguous()
        fields = tuple(_dense_rows(field) for field in fields)
        sizes = Sizes(*fields[0].shape, down.shape[2], up.shape[2], prefix, step, torch.get_num_threads())
        kept = down.new_empty(down.shape[0], kernel.atlas_kept_floats(byref(sizes)))
        results = down.new_empty(fields[0].shape), torch.empty_like(down), torch.empty_like(up)
        kernel.atlas_chunk_forward(byref(sizes), byref(_inputs(down, up, fields)), *map(_address, (kept, *results)))
        ctx.save_for_backward(down, up, *fields, kept)
        ctx.kernel, ctx.sizes = kernel, sizes
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_out: Tensor | None, d_result_down: Tensor | None, d_result_up: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        down, up, *fields, kept = ctx.saved_tensors
        query, _, _, query_features, key_features, rate = fields
        d_out = torch.zeros_like(query) if d_out is None else d_out.contiguous()
        given = d_out, *(None if part is None else part.contiguous() for part in (d_result_down, d_result_up))
        dense = [down, up, query, query_features, key_features, rate]
        results = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in dense]
        inputs = _inputs(down, up, fields)
        ctx.kernel.atlas_chunk_backward(byref(ctx.sizes), byref(inputs), *map(_address, (kept, *given, *results)))
        d_down, d_up, d_residual, d_query_features, d_key_features, d_rate = results
        weights = None, None, None, d_down, d_up
        if not ctx.sizes.prefix and d_result_down is None and d_result_up is None:
            return *weights, d_out, None, None, d_query_features, None, None
        return *weights, d_out, d_residual, -d_residual, d_query_features, d_key_features, d_rate


def _inputs(down: Tensor, up: Tensor, fields: Any) -> Inputs:
    tokens = (Tokens(field.data_ptr(), field.stride(0), field.stride(1)) for field in fields)
    return Inputs(down.data_ptr(), up.data_ptr(), *tokens)


def _dense_rows(field: Tensor) -> Tensor:
    """A tensor [N, C, width] whose rows of `width` lie together; a rate [N, C] may lie anyhow."""
    return field if field.dim() == 2 or field.stride(2) == 1 else field.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
