"""Chunks from their first token to their last, for rules that write their own gradients: the fast path of `Scan`."""

from __future__ import annotations

from math import inf

from torch import Tensor

from atlas.kernels.call import takes
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.rules.momentum import MomentumState
from atlas.ops.rules.rule import ChunkEnd, Kept
from atlas.ops.whole_chunks import cpp
from atlas.ops.whole_chunks import torch as plain

LONGEST_PREFIX = 128  # tokens of a chunk whose Gram products still fit the cache


def compiled(start: FastWeights, tokens: ChunkInputs, chunk: int, *, prefix: bool) -> bool:
    """Whether the compiled kernel takes chunks of these weights and tokens."""
    widths = *start.down.shape[1:], *start.up.shape[1:]
    return not (prefix and chunk > LONGEST_PREFIX) and takes(*start, *tokens, widths=widths)


def joins_chunks(end: ChunkEnd | None, start: FastWeights, tokens: ChunkInputs, chunk: int, *, prefix: bool) -> bool:
    """Whether `closed_chunks` may take any number of chunks. Momentum without a kernel would gain nothing by it."""
    if end is ChunkEnd.momentum:
        return compiled(start, tokens, chunk, prefix=prefix)
    return end is ChunkEnd.step


def closed_chunks(
    end: ChunkEnd, start: FastWeights, kept: Kept, tokens: ChunkInputs, chunk: int, norm_max: float, *, prefix: bool
) -> tuple[Tensor, FastWeights, Kept]:
    """Whole chunks, if `joins_chunks` -> out [N, T, d], and weights and what the rule keeps after them."""
    if not compiled(start, tokens, chunk, prefix=prefix):
        return *plain.closed_chunks(start, tokens, chunk, norm_max, prefix), kept
    if end is ChunkEnd.step:
        out, weights, _ = cpp.scan(end, start, tokens, chunk, norm_max, prefix)
        return out, weights, kept
    state = MomentumState(*kept)
    gates = tokens.controls.unflatten(1, (-1, chunk)).mean(2)
    out, weights, momentum = cpp.scan(end, start, tokens, chunk, norm_max, prefix, gates, state.momentum)
    assert momentum is not None
    return out, weights, state.next_chunk(momentum)


def chunk_update(start: FastWeights, tokens: ChunkInputs, *, prefix: bool) -> tuple[Tensor, FastWeights]:
    """One chunk, or the beginning of one -> out [N, C, d], and the sum of its scaled gradients."""
    length = tokens.rate.shape[1]
    if not compiled(start, tokens, length, prefix=prefix):
        return plain.chunk_update(start, tokens, prefix)
    out, update, _ = cpp.scan(ChunkEnd.updates, start, tokens, length, inf, prefix)
    return out, update
