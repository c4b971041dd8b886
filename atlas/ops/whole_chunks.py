"""Chunks from their first token to their last, for rules that write their own gradients: the fast path of `Scan`.

The compiled kernel does it where there is one, else `FusedChunk`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atlas.ops.compiled_scan import CompiledScan, scan_kernel
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights, bound_norm, norm_limits
from atlas.ops.fused_chunk import FusedChunk
from atlas.ops.periods import cut_fields

ENDLESS = math.inf, math.inf


def closed_chunks(
    start: FastWeights, tokens: ChunkInputs, chunk: int, norm_max: float, *, prefix: bool
) -> tuple[Tensor, FastWeights]:
    """Any number of whole chunks, whose updates are subtracted at their ends -> out [N, T, d], weights after them."""
    if kernel := scan_kernel(chunk, prefix, *start, *tokens[:6]):
        limits, keep = norm_limits(start, norm_max), torch.is_grad_enabled()
        out, *weights = CompiledScan.apply(kernel, chunk, prefix, True, limits, keep, *start, *tokens[:6])  # type: ignore[no-untyped-call]
        return out, FastWeights(*weights)
    outputs: list[Tensor] = []
    # Split at once: a slice per chunk would cost the backward pass a zero-filled gradient of the whole stretch.
    for fields in zip(*cut_fields(tokens[:6], lambda field: field.split(chunk, dim=1)), strict=True):
        out, *weights = FusedChunk.apply(prefix, True, *start, *fields)  # type: ignore[no-untyped-call]
        start = bound_norm(FastWeights(*weights), norm_max)
        outputs.append(out)
    return torch.cat(outputs, dim=1), start


def chunk_update(start: FastWeights, tokens: ChunkInputs, *, prefix: bool) -> tuple[Tensor, FastWeights]:
    """One chunk, or the beginning of one -> out [N, C, d], and the sum of its scaled gradients."""
    length = tokens.rate.shape[1]
    if kernel := scan_kernel(length, prefix, *start, *tokens[:6]):
        keep = torch.is_grad_enabled()
        out, *update = CompiledScan.apply(kernel, length, prefix, False, ENDLESS, keep, *start, *tokens[:6])  # type: ignore[no-untyped-call]
    else:
        out, *update = FusedChunk.apply(prefix, False, *start, *tokens[:6])  # type: ignore[no-untyped-call]
    return out, FastWeights(*update)
