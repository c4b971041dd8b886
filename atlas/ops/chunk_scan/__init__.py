"""A memory learns from a stretch of tokens, chunk by chunk. The loop here is never over tokens: it runs over chunks, or
where a form knows the rule's `chunk_end`, one call takes all whole chunks.

Legend: N sequences x heads (x shards), T tokens, C chunk, d head width, p feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, isqrt
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from atlas.ops.curvature import causally_damped, curvature, damped_rates, damping
from atlas.ops.dual_form import ChunkInputs, cut_fields, read_prefix, write_sum
from atlas.ops.fast_weights import FastWeights, add, bound_norm, read, scale, subtract, zeros_like
from atlas.ops.own_precision import autocasts, own_precision
from atlas.ops.rules.rule import Kept, LearningRule
from atlas.ops.whole_chunks import chosen_form


class ScanState(NamedTuple):
    """A memory between two calls. It includes the open chunk, so a stretch can be cut anywhere."""

    start: FastWeights  # weights at the start of the open chunk
    update: FastWeights  # sum of the scaled gradients of the open chunk's tokens so far
    kept: Kept  # what the learning rule keeps besides the weights
    tokens: int  # tokens of the open chunk so far
    curvature: Tensor  # [N, d, d] of the open chunk so far; [N, 0, 0] where it is not bounded
    curvature_local: Tensor  # the same for `curvature_max_local`, with the rates before they are scaled down


def written(rule: LearningRule, state: ScanState, curvature_max: float) -> FastWeights:
    """The weights with all writes so far, as if the open chunk ended here; their norm is not bounded."""
    return rule.close(state.start, _damped(state, curvature_max), state.kept)[0] if state.tokens else state.start


def open_state(
    rule: LearningRule, weights: FastWeights, *, curved: bool = False, curved_local: bool = False
) -> ScanState:
    """A memory before its first token. `curved`, `curved_local`: for a scan with that limit."""
    rows, width, _ = weights.down.shape
    sums = [weights.down.new_zeros(rows, size, size) for size in (width * curved, width * curved_local)]
    return ScanState(weights, zeros_like(weights), rule.initial(weights), 0, *sums)


def _damped(state: ScanState, curvature_max: float) -> FastWeights:
    """The update of the open chunk as it is written."""
    return scale(state.update, damping(state.curvature, curvature_max)) if state.curvature.numel() else state.update


@dataclass(frozen=True, eq=False)  # PyTorch 2.11 cannot trace a call of an object that hashes its fields
class Scan:
    """How a memory learns and reads. The chunk size can change between two calls; a longer open chunk is then closed.

    `read_at_start=False`: token t reads the weights that have learned from tokens up to t (local memory, TNT Eq 6),
    except where the rule has `reads_start`.
    `read_at_start=True`: token t reads the weights of its chunk's start (global memory, TNT Eq 5).
    It computes in the precision of the weights, under autocast too: a memory adds up small updates.
    `curvature_max` scales down the writes of a chunk that act together (`curvature.py`), only with `read_at_start`;
    `curvature_max_local` those of a token and the ones before it. 0 does not.
    `recompute=True`: the backward pass recomputes groups of about sqrt(T / C) chunks instead of keeping all.
    """

    rule: LearningRule
    chunk: int  # tokens
    norm_max: float  # bound of the weights, see `bound_norm`
    read_at_start: bool
    recompute: bool = False
    curvature_max: float = 0.0
    curvature_max_local: float = 0.0

    def __call__(self, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        """Learn from and read for every token of a stretch [N, T, ...] -> outputs [N, T, d] and the state after it.

        The stretch is split into: the rest of the open chunk, whole chunks, the start of the next one. The fast path
        takes all whole chunks as one part.
        """
        tokens = ChunkInputs(*(field.to(state.start.down.dtype) for field in tokens))
        total = tokens.rate.shape[1]
        if not total:
            return tokens.query, state
        if self.recompute and torch.is_grad_enabled() and total > self.chunk:
            return self._recomputed(state, tokens)
        if self.chunk == 1 and self.rule.reads_end and not self.read_at_start:
            return self._read_at_ends(state, tokens)
        end, prefix = self.rule.chunk_end, self._reads_prefix
        half = end if autocasts(tokens.rate) else None  # the caller's products are rounded, so a kernel's may be
        with own_precision(tokens.rate):
            nothing = zeros_like(state.start) if state.tokens else state.update
            if state.tokens >= self.chunk:
                state = self._closed(state, nothing)
            own = self.rule.own_gradients
            form = chosen_form(state.start, tokens, self.chunk, prefix=prefix, half=half) if own else None
            joins = form is not None and end in form.ENDS
            first = min(self.chunk - state.tokens, total) if state.tokens else 0
            whole, last = divmod(total - first, self.chunk)
            lengths = [first, *([whole * self.chunk] if joins else whole * [self.chunk]), last]
            outputs: list[Tensor] = []
            for part in _split(tokens, [length for length in lengths if length]):
                if form is not None and joins and not state.tokens and part.rate.shape[1] >= self.chunk:
                    part = part._replace(rate=self._rates(part))
                    out, weights, kept = form.closed_chunks(
                        end, state.start, state.kept, part, self.chunk, self.norm_max, prefix
                    )
                    state = state._replace(start=weights, update=nothing, kept=kept)  # tokens and curvatures are 0
                else:
                    out, state = self._part_of_chunk(state, part)
                    if state.tokens >= self.chunk:
                        state = self._closed(state, nothing)
                outputs.append(out)
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state

    def of_fields(self, state: ScanState, tokens: tuple[Tensor, ...]) -> tuple[Tensor, ScanState]:
        """The same of the fields of `ChunkInputs`, in their order."""
        return self(state, ChunkInputs(*tokens))

    def _rates(self, tokens: ChunkInputs) -> Tensor:
        """Of whole chunks [N, n * C], as they are written."""
        rate = tokens.rate
        if self.curvature_max:
            rate = damped_rates(tokens.key, rate, self.chunk, self.curvature_max)
        if self.curvature_max_local:
            key, rate = (field.unflatten(1, (-1, self.chunk)) for field in (tokens.key, rate))
            rate = causally_damped(key, rate, self.curvature_max_local).flatten(1)
        return rate

    def _read_at_ends(self, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        """Chunks of one token, each read after its update. The end of a chunk is the start of the next one: every query
        moves one token later, and the first output is dropped."""
        query, features = (
            torch.cat((field[:, :1], field[:, :-1]), dim=1) for field in (tokens.query, tokens.query_features)
        )
        at_start = replace(self, read_at_start=True)
        out, state = at_start(state, tokens._replace(query=query, query_features=features))
        with own_precision(tokens.rate):
            last = read(state.start, tokens.query[:, -1:], tokens.query_features[:, -1:])
        return torch.cat((out[:, 1:], last), dim=1), state

    def _recomputed(self, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        """The same in groups of chunks whose intermediate values are computed again in the backward pass."""
        total = tokens.rate.shape[1]
        group = self.chunk * isqrt(ceil(total / self.chunk))
        outputs: list[Tensor] = []  # annotated: PyTorch 2.11 cannot trace list[Tensor]()
        keeping = replace(self, recompute=False)
        for first in range(0, total, group):
            tokens_of_group = itemgetter((slice(None), slice(first, first + group)))
            piece = ChunkInputs(*cut_fields(tokens, tokens_of_group))
            out, state = checkpoint(keeping, state, piece, use_reentrant=False, preserve_rng_state=False)
            outputs.append(out)
        return torch.cat(outputs, dim=1), state

    def _part_of_chunk(self, state: ScanState, tokens: ChunkInputs) -> tuple[Tensor, ScanState]:
        """A chunk or a part of one, left open -> outputs [N, C, d] and the state after it."""
        length, prefix = tokens.rate.shape[1], self._reads_prefix
        so_far = state.curvature_local
        if limit := self.curvature_max_local:
            rate = causally_damped(tokens.key, tokens.rate, limit, so_far)
            so_far, tokens = so_far + curvature(tokens.key, tokens.rate), tokens._replace(rate=rate)
        if self.rule.own_gradients and not (prefix and state.tokens):
            form = chosen_form(state.start, tokens, length, prefix=prefix)
            out, update = form.chunk_update(state.start, tokens, prefix)
        else:
            writes = self.rule.write(state.start, state.kept, tokens)
            if prefix:
                current = subtract(state.start, state.update) if state.tokens else state.start
                out = read_prefix(current, writes, tokens)
            else:
                out = read(state.start, tokens.query, tokens.query_features)
            update = write_sum(writes)
        if state.tokens:
            update = add(state.update, update)
        curved = state.curvature + curvature(tokens.key, tokens.rate) if self.curvature_max else state.curvature
        kept = self.rule.keep(state.kept, tokens)
        return out, ScanState(state.start, update, kept, state.tokens + length, curved, so_far)

    def _closed(self, state: ScanState, nothing: FastWeights) -> ScanState:
        """The state at the start of the next chunk; `nothing` is an update of zeros."""
        weights, kept = self.rule.close(state.start, _damped(state, self.curvature_max), state.kept)
        none = (torch.zeros_like(sums) for sums in (state.curvature, state.curvature_local))
        return ScanState(bound_norm(weights, self.norm_max), nothing, kept, 0, *none)

    @property
    def _reads_prefix(self) -> bool:
        return not (self.read_at_start or self.rule.reads_start)


def _split(tokens: ChunkInputs, lengths: list[int]) -> Iterator[ChunkInputs]:
    """Split at once: a slice per part would cost the backward pass a zero-filled gradient of the whole stretch."""
    if len(lengths) == 1:
        yield tokens
        return
    for fields in zip(*cut_fields(tokens, lambda field: field.split(lengths, dim=1)), strict=True):
        yield ChunkInputs(*fields)
