"""Chunks from their first token to their last, for rules that write their own gradients: the fast path of `Scan`.

The compiled kernel does it where there is one, else `FusedChunk`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas.ops.compiled_scan import CompiledScan, ScanSettings, scan_kernel
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights, bound_norm, norm_limits
from atlas.ops.fused_chunk import FusedChunk
from atlas.ops.periods import cut_fields
from atlas.ops.rules.momentum import MomentumState
from atlas.ops.rules.rule import ChunkEnd, Kept


def joins_chunks(end: ChunkEnd | None, start: FastWeights, tokens: ChunkInputs, chunk: int, *, prefix: bool) -> bool:
    """Whether `closed_chunks` may take any number of chunks. Momentum without a kernel would gain nothing by it."""
    if end is ChunkEnd.momentum:
        return scan_kernel(chunk, prefix, *start, *tokens) is not None
    return end is ChunkEnd.step


def closed_chunks(
    end: ChunkEnd, start: FastWeights, kept: Kept, tokens: ChunkInputs, chunk: int, norm_max: float, *, prefix: bool
) -> tuple[Tensor, FastWeights, Kept]:
    """Whole chunks, if `joins_chunks` -> out [N, T, d], and weights and what the rule keeps after them."""
    kernel = scan_kernel(chunk, prefix, *start, *tokens)
    if not kernel:
        return *_fused(start, tokens, chunk, norm_max, prefix), kept
    limits, keep = norm_limits(start, norm_max), torch.is_grad_enabled()
    settings = ScanSettings(chunk, prefix, end, limits, keep)
    if end is ChunkEnd.step:
        out, *weights = CompiledScan.apply(kernel, settings, *tokens[:6], None, *start)  # type: ignore[no-untyped-call]
        return out, FastWeights(*weights), kept
    state = MomentumState(*kept)
    gates = tokens.controls.unflatten(1, (-1, chunk)).mean(2)
    out, *after = CompiledScan.apply(kernel, settings, *tokens[:6], gates, *start, *state.momentum)  # type: ignore[no-untyped-call]
    return out, FastWeights(*after[:2]), state.next_chunk(FastWeights(*after[2:]))


def chunk_update(start: FastWeights, tokens: ChunkInputs, *, prefix: bool) -> tuple[Tensor, FastWeights]:
    """One chunk, or the beginning of one -> out [N, C, d], and the sum of its scaled gradients."""
    length = tokens.rate.shape[1]
    if kernel := scan_kernel(length, prefix, *start, *tokens):
        settings = ScanSettings(length, prefix, ChunkEnd.updates, keep=torch.is_grad_enabled())
        out, *update = CompiledScan.apply(kernel, settings, *tokens[:6], None, *start)  # type: ignore[no-untyped-call]
    else:
        out, *update = FusedChunk.apply(prefix, False, *start, *tokens[:6])  # type: ignore[no-untyped-call]
    return out, FastWeights(*update)


def _fused(
    start: FastWeights, tokens: ChunkInputs, chunk: int, norm_max: float, prefix: bool
) -> tuple[Tensor, FastWeights]:
    outputs: list[Tensor] = []
    # Split at once: a slice per chunk would cost the backward pass a zero-filled gradient of the whole stretch.
    for fields in zip(*cut_fields(tokens[:6], lambda field: field.split(chunk, dim=1)), strict=True):
        out, *weights = FusedChunk.apply(prefix, True, *start, *fields)  # type: ignore[no-untyped-call]
        start = bound_norm(FastWeights(*weights), norm_max)
        outputs.append(out)
    return torch.cat(outputs, dim=1), start
