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

from atlas.kernels.signatures import ScanInputs, ScanSizes
from atlas.ops.compiled import addresses, dense, kernels_for, rows

LONGEST_PREFIX = 128  # tokens of a chunk whose Gram products still fit the cache


def scan_kernel(chunk: int, prefix: bool, *tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled library if it takes chunks of these weights (`down` and `up` first) and fields."""
    if prefix and chunk > LONGEST_PREFIX:
        return None
    return kernels_for(tensors, [*tensors[0].shape[1:], *tensors[1].shape[1:]])


class CompiledScan(torch.autograd.Function):
    """(library, C, prefix, step, norm limits, keep, down, up, q, k, v, phi(q), phi(k), rate) -> out [N, T, d] and the
    weights after the last chunk; without `step`, which takes a single chunk, its updates. Without `keep` there is no
    gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: ctypes.CDLL,
        chunk: int,
        prefix: bool,
        step: bool,
        limits: tuple[float, float],
        keep: bool,
        down: Tensor,
        up: Tensor,
        *fields: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        down, up = down.contiguous(), up.contiguous()
        fields = (*map(dense, fields[:5]), fields[5])
        count, total, width = fields[0].shape
        shape = count, total // chunk, chunk, width, down.shape[2], up.shape[2]
        sizes = ScanSizes(*shape, prefix, step, torch.get_num_threads(), *limits)
        # A chunk starts from the weights that the one before it has left in its own part: two parts are enough.
        parts = sizes.chunks if keep else min(sizes.chunks, 2)
        kept = [down.new_empty(count, kernel.atlas_scan_floats(byref(sizes))) for _ in range(parts)]
        results = down.new_empty(fields[0].shape), torch.empty_like(down), torch.empty_like(up)
        chunks = _array([kept[number % parts] for number in range(sizes.chunks)])
        kernel.atlas_scan_forward(byref(sizes), byref(_inputs(down, up, fields)), chunks, *addresses(*results))
        if not keep:
            return results
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
            _array(kept),
            *addresses(*after, *given, *results),
        )
        d_down, d_up, d_residual, *others = results
        return *[None] * 6, d_down, d_up, d_out, d_residual, -d_residual, *others


def _inputs(down: Tensor, up: Tensor, fields: Sequence[Tensor]) -> ScanInputs:
    return ScanInputs(*addresses(down, up), *map(rows, fields))


def _array(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*addresses(*tensors))
