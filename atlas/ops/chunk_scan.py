"""A memory learns along a stretch of tokens, chunk by chunk; the loop runs over chunks, never over tokens.

Legend: N sequences x heads (x shards), T tokens, C chunk, d head width, p feature width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atlas.ops.fast_weights import FastWeights, bound_norm, read, subtract, zeros_like
from atlas.ops.rules.gd import ChunkInputs, chunk_gradient, gradient_sum, read_prefix


class ScanState(NamedTuple):
    """A memory between two calls. The open chunk is part of it, so a stretch may be cut anywhere."""

    start: FastWeights  # weights at the start of the open chunk
    update: FastWeights  # sum of the scaled gradients of the open chunk's tokens so far
    tokens: int  # tokens of the open chunk so far


def open_state(weights: FastWeights) -> ScanState:
    return ScanState(weights, zeros_like(weights), 0)


def scan(
    state: ScanState, tokens: ChunkInputs, chunk: int, *, read_at_start: bool, norm_max: float
) -> tuple[Tensor, ScanState]:
    """Learn from and read for every token of a stretch [N, T, ...] -> outputs [N, T, d] and the state after it.

    `read_at_start=False`: token t reads the weights that have learned from tokens up to t (local memory, TNT Eq 6).
    `read_at_start=True`: token t reads the weights of its chunk's start (global memory, TNT Eq 5).
    """
    outputs: list[Tensor] = []
    done, total = 0, tokens.rate.shape[1]
    while done < total:
        part = min(total - done, chunk - state.tokens)
        piece = ChunkInputs(*(field[:, done : done + part] for field in tokens))
        out, state = _advance(state, piece, read_at_start)
        if state.tokens == chunk:
            state = open_state(bound_norm(subtract(state.start, state.update), norm_max))
        outputs.append(out)
        done += part
    return torch.cat(outputs, dim=1), state


def _advance(state: ScanState, tokens: ChunkInputs, read_at_start: bool) -> tuple[Tensor, ScanState]:
    """One chunk, or a part of one."""
    gradient = chunk_gradient(state.start, tokens)
    if read_at_start:
        out = read(state.start, tokens.query, tokens.query_features)
    else:
        current = subtract(state.start, state.update) if state.tokens else state.start
        out = read_prefix(current, gradient, tokens)
    update = gradient_sum(gradient, tokens.key_features)
    if state.tokens:
        update = FastWeights(state.update.down + update.down, state.update.up + update.up)
    return out, ScanState(state.start, update, state.tokens + tokens.rate.shape[1])
