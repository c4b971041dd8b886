"""A memory learns along a stretch of tokens, chunk by chunk; the loop runs over chunks, never over tokens.

Legend: N sequences x heads (x shards), T tokens, C chunk, d head width, p feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from atlas.ops.dual_form import ChunkInputs, read_prefix, write_sum
from atlas.ops.fast_weights import FastWeights, add, bound_norm, read, subtract, zeros_like
from atlas.ops.periods import cut_fields
from atlas.ops.rules.rule import Kept, LearningRule
from atlas.ops.whole_chunks import chunk_update, closed_chunks, joins_chunks


class ScanState(NamedTuple):
    """A memory between two calls. The open chunk is part of it, so a stretch may be cut anywhere."""

    start: FastWeights  # weights at the start of the open chunk
    update: FastWeights  # sum of the scaled gradients of the open chunk's tokens so far
    kept: Kept  # what the learning rule keeps besides
    tokens: int  # tokens of the open chunk so far


def written(rule: LearningRule, state: ScanState) -> FastWeights:
    """The weights with everything written so far, as if the open chunk ended here; not bounded."""
    return rule.close(state.start, state.update, state.kept)[0] if state.tokens else state.start


def open_state(rule: LearningRule, weights: FastWeights) -> ScanState:
    """A memory before its first token."""
    return ScanState(weights, zeros_like(weights), rule.initial(weights), 0)


@dataclass(frozen=True)
class Scan:
    """How a memory learns and reads. The chunk may change between two calls: a chunk open for longer is closed at once.

    `read_at_start=False`: token t reads the weights that have learned from tokens up to t (local memory, TNT Eq 6),
    except where the rule has `reads_start`.
    `read_at_start=True`: token t reads the weights of its chunk's start (global memory, TNT Eq 5).
    `recompute=True`: the backward pass computes groups of about sqrt(T / C) chunks again instead of keeping them all.
    """

    rule: LearningRule
    chunk: int  # tokens
    norm_max: float  # bound of the weights, see `bound_norm`
    read_at_start: bool
    recompute: bool = False

    def __call__(self, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        """Learn from and read for every token of a stretch [N, T, ...] -> outputs [N, T, d] and the state after it."""
        total = tokens.rate.shape[1]
        if not total:
            return tokens.query, state
        if not (self.recompute and torch.is_grad_enabled()) or total <= self.chunk:
            return self._chunks(state, tokens)
        group = self.chunk * isqrt(ceil(total / self.chunk))
        outputs: list[Tensor] = []
        for first in range(0, total, group):
            piece = _slice(tokens, first, first + group)
            out, state = checkpoint(self._chunks, state, piece, use_reentrant=False, preserve_rng_state=False)
            outputs.append(out)
        return torch.cat(outputs, dim=1), state

    def _chunks(self, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        if self.chunk == 1 and self.rule.reads_end and not self.read_at_start:
            return self._read_at_ends(state, tokens)
        outputs: list[Tensor] = []
        nothing = zeros_like(state.start)
        state = self._close_if_full(state, nothing)
        for part in _cut(tokens, self._lengths(state, tokens)):
            out, state = self._advance(state, part, nothing)
            outputs.append(out)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state

    def _read_at_ends(self, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        """Chunks of one token, each read after its update: the end of one is the start of the next, so every query
        waits for a token, and the first place is left over."""
        query, features = (
            torch.cat((field[:, :1], field[:, :-1]), dim=1) for field in (tokens.query, tokens.query_features)
        )
        at_start = replace(self, read_at_start=True)
        out, state = at_start._chunks(state, tokens._replace(query=query, query_features=features))
        last = read(state.start, tokens.query[:, -1:], tokens.query_features[:, -1:])
        return torch.cat((out[:, 1:], last), dim=1), state

    def _lengths(self, state: ScanState, tokens: ChunkInputs) -> list[int]:
        """Splits a stretch into: the rest of the open chunk, then whole chunks, then a partial chunk. The fast path
        takes all whole chunks as one part."""
        total = tokens.rate.shape[1]
        first = min(self.chunk - state.tokens, total) if state.tokens else 0
        whole = (total - first) // self.chunk
        joined = self._joins_chunks(state.start, tokens)
        lengths = [first, whole * self.chunk] if joined else [first, *[self.chunk] * whole]
        lengths.append(total - sum(lengths))
        return [length for length in lengths if length]

    def _advance(self, state: ScanState, tokens: ChunkInputs, nothing: FastWeights) -> tuple[Tensor, ScanState]:
        """One part. A chunk that is full is closed."""
        length = tokens.rate.shape[1]
        end = self.rule.chunk_end
        whole = not state.tokens and length % self.chunk == 0
        if end is not None and whole and self._joins_chunks(state.start, tokens):
            memory, how = (end, state.start, state.kept), (self.chunk, self.norm_max)
            out, weights, kept = closed_chunks(*memory, tokens, *how, prefix=not self._at_start)
            return out, ScanState(weights, nothing, kept, 0)
        out, update = self._read_and_write(state, tokens)
        # Sums of a long chunk keep the precision of the weights, under autocast too.
        update = FastWeights(update.down.to(state.start.down.dtype), update.up.to(state.start.up.dtype))
        if state.tokens:
            update = add(state.update, update)
        kept = self.rule.keep(state.kept, tokens)
        return out, self._close_if_full(ScanState(state.start, update, kept, state.tokens + length), nothing)

    def _read_and_write(self, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, FastWeights]:
        if self._may_fuse and (self._at_start or not state.tokens):
            return chunk_update(state.start, tokens, prefix=not self._at_start)
        writes = self.rule.write(state.start, state.kept, tokens)
        if self._at_start:
            return read(state.start, tokens.query, tokens.query_features), write_sum(writes)
        current = subtract(state.start, state.update) if state.tokens else state.start
        return read_prefix(current, writes, tokens), write_sum(writes)

    @property
    def _at_start(self) -> bool:
        return self.read_at_start or self.rule.reads_start

    @property
    def _may_fuse(self) -> bool:
        autocast = any(map(torch.is_autocast_enabled, ("cpu", "cuda")))  # the fused chunk wants one dtype
        return self.rule.own_gradients and not autocast

    def _joins_chunks(self, start: FastWeights, tokens: ChunkInputs) -> bool:
        prefix = not self._at_start
        return self._may_fuse and joins_chunks(self.rule.chunk_end, start, tokens, self.chunk, prefix=prefix)

    def _close_if_full(self, state: ScanState, nothing: FastWeights) -> ScanState:
        if state.tokens < self.chunk:
            return state
        weights, kept = self.rule.close(state.start, state.update, state.kept)
        return ScanState(bound_norm(weights, self.norm_max), nothing, kept, 0)


def _slice(tokens: ChunkInputs, first: int, end: int) -> ChunkInputs:
    return ChunkInputs(*cut_fields(tokens, lambda field: field[:, first:end]))


def _cut(tokens: ChunkInputs, lengths: list[int]) -> Iterator[ChunkInputs]:
    """Cut at once, since a slice each would cost the backward pass a zero-filled gradient of the whole stretch."""
    if len(lengths) == 1:
        yield tokens
        return
    for fields in zip(*cut_fields(tokens, lambda field: field.split(lengths, dim=1)), strict=True):
        yield ChunkInputs(*fields)
