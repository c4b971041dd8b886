"""Chunks in a row by the Triton kernels of `atlas/kernels/triton_scan.py`.

On a GPU, chunk by chunk, PyTorch's operations launch some 130 kernels a chunk, which takes longer than their work. Here
a stretch is one kernel each way.

Legend: N rows, T tokens, d head width.
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from atlas.config import TRITON_CHUNK, TRITON_WIDTHS
from atlas.kernels import gpu
from atlas.ops.dual_form import ChunkInputs, cut_fields
from atlas.ops.fast_weights import FastWeights, add, bound_norm, norm_limits, scale, subtract
from atlas.ops.rules.momentum import MomentumState
from atlas.ops.rules.rule import ChunkEnd, Kept
from atlas.ops.whole_chunks import torch as plain
from atlas.ops.whole_chunks.triton_scan import Variant, scan, why_not

ENDS = frozenset({ChunkEnd.step, ChunkEnd.momentum})
LONGEST = TRITON_CHUNK  # tokens of a chunk whose tiles come one after the other

chunk_update = plain.chunk_update  # of an open chunk


def takes(end: ChunkEnd, start: FastWeights, tokens: ChunkInputs, chunk: int, *, prefix: bool) -> bool:
    """Whether the kernels take chunks of these weights and tokens, closed by `end`, where bf16 products are wanted.

    The first time this compiles them. If that fails, the answer is no, and a warning says why once.
    """
    widths = {*start.down.shape[1:], start.up.shape[2]}
    tensors = *start, *tokens[:6]
    length = chunk <= LONGEST or (not prefix and chunk % LONGEST == 0)
    fits = end in ENDS and length and widths <= set(TRITON_WIDTHS)
    if not fits or not all(part.dtype is torch.float32 and gpu.takes(part) for part in tensors):
        return False
    momentum = end is ChunkEnd.momentum and chunk <= LONGEST
    return ready(*variant_of(start, min(chunk, LONGEST), prefix, momentum))


def ready(*variant: Any) -> bool:
    """Whether the kernels of a variant can be launched."""
    chosen = Variant(*variant)
    return gpu.interpreted() or gpu.ready(str(chosen), why_not(chosen))


def variant_of(start: FastWeights, chunk: int, prefix: bool, momentum: bool) -> Variant:
    (width, hidden), features = start.down.shape[1:], start.up.shape[2]
    return Variant(chunk, width, hidden, features, prefix, momentum, "emulated" if gpu.interpreted() else "bf16")


def closed_chunks(
    end: ChunkEnd, start: FastWeights, kept: Kept, tokens: ChunkInputs, chunk: int, norm_max: float, prefix: bool
) -> tuple[Tensor, FastWeights, Kept]:
    """Whole chunks, one after the other -> out [N, T, d], the weights and what the rule keeps after them."""
    if chunk > LONGEST:
        return _long_chunks(end, start, kept, tokens, chunk, norm_max)
    variant = variant_of(start, chunk, prefix, end is ChunkEnd.momentum)
    limits = norm_limits(start, norm_max)
    if end is ChunkEnd.step:
        out, down, up = scan(variant, limits, tokens, start)
        return out, FastWeights(down, up), kept
    state = MomentumState(*kept)
    out, down, up, *momentum = scan(variant, limits, tokens, start, state.momentum)
    return out, FastWeights(down, up), state.next_chunk(FastWeights(*momentum))


def _long_chunks(
    end: ChunkEnd, start: FastWeights, kept: Kept, tokens: ChunkInputs, chunk: int, norm_max: float
) -> tuple[Tensor, FastWeights, Kept]:
    """The same for chunks that are read at their start and longer than `LONGEST`.

    Their tokens do not depend on each other: a chunk is cut into blocks, which are rows of their own with the same
    start weights, and their updates are added up.
    """
    outputs: list[Tensor] = []
    blocks, unbounded = chunk // LONGEST, (inf, inf)
    variant = variant_of(start, LONGEST, prefix=False, momentum=False)
    for fields in zip(*cut_fields(tokens, lambda field: field.split(chunk, dim=1)), strict=True):
        rows = cut_fields(fields, lambda field: field.unflatten(1, (blocks, LONGEST)).flatten(0, 1))
        copies = FastWeights(*(matrix.repeat_interleave(blocks, dim=0) for matrix in start))
        out, *after = scan(variant, unbounded, ChunkInputs(*rows), copies)
        updates = subtract(copies, FastWeights(*after))
        update = FastWeights(*(matrix.unflatten(0, (-1, blocks)).sum(1) for matrix in updates))
        outputs.append(out.unflatten(0, (-1, blocks)).flatten(1, 2))
        if end is ChunkEnd.momentum:
            state = MomentumState(*kept)
            theta, forget = fields[-1].mean(1).unbind(-1)
            update = add(scale(state.momentum, theta), update)
            start, kept = scale(start, 1 - forget), state.next_chunk(update)
        start = bound_norm(subtract(start, update), norm_max)
    return torch.cat(outputs, dim=1), start, kept
