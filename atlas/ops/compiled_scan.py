"""Chunks one after the other by the compiled kernel of `atlas/kernels/scan.cpp`: `FusedChunk`, what the rule does at a
chunk's end if that is a `ChunkEnd`, and `bound_norm` in turn.

A chunk as an autograd function of some thirty small operations spends half its time between them. The kernel takes a
row at a time, whose weights and intermediate values fit the cache of a core, and rows are shared out among threads.
`tests/unit/ops/test_compiled_scan.py` compares both, gradients too.

Legend: N rows, n chunks, C tokens of each, T = n * C, d head width, h hidden width, p feature width.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from ctypes import byref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlas.kernels.signatures import ScanInputs, ScanMemory, ScanSizes, TokenGradients
from atlas.ops.compiled import addresses, dense, kernels_for, rows
from atlas.ops.rules.rule import ChunkEnd

FIELDS = 6  # of the tokens; then come gates and memory
MEMORY = FIELDS + 1
LONGEST_PREFIX = 128  # tokens of a chunk whose Gram products still fit the cache


def scan_kernel(chunk: int, prefix: bool, *tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled library if it takes chunks of these weights (`down` and `up` first) and fields."""
    if prefix and chunk > LONGEST_PREFIX:
        return None
    return kernels_for(tensors, [*tensors[0].shape[1:], *tensors[1].shape[1:]])


class ScanSettings(NamedTuple):
    """What a stretch is run with besides its tensors."""

    chunk: int  # C
    prefix: bool  # whether a token reads what its own chunk has written so far
    end: ChunkEnd
    limits: tuple[float, float] = (math.inf, math.inf)  # largest norms after a chunk: of W1, of W2 over W3
    keep: bool = True  # what the backward pass needs


class CompiledScan(torch.autograd.Function):
    """(library, settings, q, k, v, phi(q), phi(k), rate, gates, *memory) -> out [N, T, d], *memory after it.

    The memory is W1 and W2 over W3. `ChunkEnd.momentum`: their momentum as well, and gates [N, n, 2] are theta and
    1 - alpha of the chunks, else None. `ChunkEnd.updates`: there is a single chunk, and its updates come out.
    """

    @staticmethod
    def forward(ctx: Any, kernel: ctypes.CDLL, settings: ScanSettings, *given: Tensor | None) -> tuple[Tensor, ...]:
        tensors = _laid_out(given)
        sizes = _sizes(settings, tensors)
        query, memory = tensors[0], tensors[MEMORY:]
        # A chunk starts from the memory that the one before it has left in its own part: two parts are enough.
        parts = sizes.chunks if settings.keep else min(sizes.chunks, 2)
        kept = [query.new_empty(sizes.rows, kernel.atlas_scan_floats(byref(sizes))) for _ in range(parts)]
        chunks = _array([kept[number % parts] for number in range(sizes.chunks)])
        out, *after = (_like(part) for part in (query, *memory))
        kernel.atlas_scan_forward(byref(sizes), byref(_inputs(tensors)), chunks, byref(_memory(after)), *addresses(out))
        if settings.keep:
            ctx.save_for_backward(*tensors, *after, *kept)
            ctx.kernel, ctx.settings, ctx.split = kernel, settings, (len(tensors), len(tensors) + len(after))
            ctx.set_materialize_grads(False)
        return out, *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, *d_after: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # to be asked for once
        tensors, after, kept = saved[: ctx.split[0]], saved[slice(*ctx.split)], saved[ctx.split[1] :]
        query, _, _, *others = tensors[:FIELDS]
        gates, *memory = tensors[FIELDS:]
        d_out = torch.zeros_like(query) if d_out is None else d_out.contiguous()
        d_residual, *d_others = d_tokens = [_like(part) for part in (query, *others)]
        d_gates, *d_memory = (None if part is None else _like(part) for part in (gates, *memory))
        given = [_contiguous(part) for part in d_after]
        ctx.kernel.atlas_scan_backward(
            byref(_sizes(ctx.settings, tensors)),
            byref(_inputs(tensors)),
            _array(kept),
            byref(_memory(after)),
            *addresses(d_out),
            byref(_memory(given)),
            byref(_memory(d_memory)),
            *addresses(d_gates),
            byref(TokenGradients(*addresses(*d_tokens))),
        )
        return None, None, d_out, d_residual, -d_residual, *d_others, d_gates, *d_memory


def _laid_out(tensors: Sequence[Any]) -> list[Any]:
    """As the kernel reads them."""
    *fields, rate = tensors[:FIELDS]
    return [*map(dense, fields), rate, *map(_contiguous, tensors[FIELDS:])]


def _sizes(settings: ScanSettings, tensors: Sequence[Any]) -> ScanSizes:
    count, total, width = tensors[0].shape
    hidden, features = tensors[MEMORY].shape[2], tensors[MEMORY + 1].shape[2]
    shape = count, total // settings.chunk, settings.chunk, width, hidden, features
    return ScanSizes(*shape, settings.prefix, settings.end, torch.get_num_threads(), *settings.limits)


def _inputs(tensors: Sequence[Any]) -> ScanInputs:
    return ScanInputs(_memory(tensors[MEMORY:]), *addresses(tensors[FIELDS]), *map(rows, tensors[:FIELDS]))


def _memory(parts: Sequence[Tensor | None]) -> ScanMemory:
    return ScanMemory(*addresses(*parts))


def _array(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*addresses(*tensors))


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
