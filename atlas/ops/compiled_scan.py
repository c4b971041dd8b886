"""Chunks one after the other by the compiled kernel of `atlas/kernels/scan.cpp`: `FusedChunk` and `bound_norm` in turn.

A chunk as an autograd function of some thirty small operations spends half its time between them. The kernel takes a
row at a time, whose weights and intermediate values fit the cache of a core, and rows are shared out among threads.
`tests/unit/ops/test_compiled_scan.py` compares both, gradients too.

Legend: N rows, n chunks, C tokens of each, T = n * C, d head width, h hidden width, p feature width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlas.kernels.library import library
from atlas.kernels.signatures import Inputs, Sizes, Tokens

GRANULE = 8  # widths are multiples of it: the narrowest vector of the kernel
LONGEST_PREFIX = 128  # tokens of a chunk whose Gram products still fit the cache


def scan_kernel(chunk: int, prefix: bool, *tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled library if it takes chunks of these weights (`down` and `up` first) and fields: float32 on a CPU,
    even widths, no long prefix."""
    if any(part.device.type != "cpu" or part.dtype != torch.float32 for part in tensors):
        return None
    if any(size % GRANULE for part in tensors[:2] for size in part.shape[1:]):
        return None
    return None if prefix and chunk > LONGEST_PREFIX else library()


class CompiledScan(torch.autograd.Function):
    """(library, C, prefix, step, norm limits, down, up, q, k, v, phi(q), phi(k), rate) -> out [N, T, d] and the
    weights after the last chunk; without `step`, which takes a single chunk, its updates."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: ctypes.CDLL,
        chunk: int,
        prefix: bool,
        step: bool,
        limits: tuple[float, float],
        down: Tensor,
        up: Tensor,
        *fields: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        down, up = down.contiguous(), up.contiguous()
        fields = tuple(_dense_rows(field) for field in fields)
        rows, total, width = fields[0].shape
        shape = rows, total // chunk, chunk, width, down.shape[2], up.shape[2]
        sizes = Sizes(*shape, prefix, step, torch.get_num_threads(), *limits)
        kept_floats = kernel.atlas_scan_floats(byref(sizes))
        kept = [down.new_empty(rows, kept_floats) for _ in range(sizes.chunks)]
        results = down.new_empty(fields[0].shape), torch.empty_like(down), torch.empty_like(up)
        kernel.atlas_scan_forward(
            byref(sizes), byref(_inputs(down, up, fields)), _addresses(kept), *map(_address, results)
        )
        ctx.save_for_backward(down, up, *fields, *results[1:], *kept)
        ctx.kernel, ctx.sizes = kernel, sizes
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_out: Tensor | None, d_after_down: Tensor | None, d_after_up: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # to be asked for once
        (down, up), fields, after, kept = saved[:2], saved[2:8], saved[8:10], saved[10:]
        query, _, _, query_features, key_features, rate = fields
        d_out = torch.zeros_like(query) if d_out is None else d_out.contiguous()
        given = d_out, *(None if part is None else part.contiguous() for part in (d_after_down, d_after_up))
        shapes = down, up, query, query_features, key_features, rate
        results = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in shapes]
        ctx.kernel.atlas_scan_backward(
            byref(ctx.sizes),
            byref(_inputs(down, up, fields)),
            _addresses(kept),
            *map(_address, (*after, *given, *results)),
        )
        d_down, d_up, d_residual, *others = results
        return *[None] * 5, d_down, d_up, d_out, d_residual, -d_residual, *others


def _inputs(down: Tensor, up: Tensor, fields: Sequence[Tensor]) -> Inputs:
    tokens = (Tokens(field.data_ptr(), field.stride(0), field.stride(1)) for field in fields)
    return Inputs(down.data_ptr(), up.data_ptr(), *tokens)


def _dense_rows(field: Tensor) -> Tensor:
    """A tensor [N, T, width] whose rows of `width` lie together; a rate [N, T] may lie anyhow."""
    return field if field.dim() == 2 or field.stride(2) == 1 else field.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*map(_address, tensors))
