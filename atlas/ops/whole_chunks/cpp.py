"""Consecutive chunks by the kernel of `atlas/kernels/scan.cpp`: each is `FusedChunk`, the update of a `ChunkEnd`, and
`bound_norm`.

As an autograd function, a chunk is about thirty small operations, and half its time is overhead. The kernel computes
one row at a time: its weights and intermediate values fit the cache of a core. Threads share the rows. `kept` is the
state of the learning rule; `saved` is what the backward pass needs.

Legend: N rows, n chunks, C tokens of each, T = n * C, d head width, h hidden width, p feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from torch import Tensor, is_grad_enabled

from atlas.kernels.call import Kernel, Shapes, floats, operator
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights, norm_limits
from atlas.ops.rules.momentum import MomentumState
from atlas.ops.rules.rule import ChunkEnd, Kept

FIELDS = 6  # tensors of the tokens; gates and memory follow
MEMORY = "down", "up", "momentum_down", "momentum_up"


class ScanSizes(NamedTuple):
    rows: int
    chunks: int
    chunk: int
    width: int
    hidden: int
    features: int
    prefix: int
    end: int
    parts: int
    shared: int
    down_limit: float
    up_limit: float


class ScanSettings(NamedTuple):
    """The operators' arguments that are not tensors."""

    chunk: int  # C
    prefix: bool  # whether a token reads what its chunk has written so far
    end: int  # a `ChunkEnd`
    down_limit: float  # largest norm of W1 after a chunk
    up_limit: float  # of W2 over W3
    save: bool  # whether to save what the backward pass needs


def _sizes(tensors: Sequence[Any], settings: ScanSettings) -> ScanSizes:
    query, query_features, down, up = tensors[0], tensors[3], *tensors[FIELDS + 1 : FIELDS + 3]
    rows, total, width = query.shape
    chunks = total // settings.chunk
    # A chunk reads the memory that the previous chunk left in its part: two parts are enough.
    parts = chunks if settings.save else min(chunks, 2)
    shape = rows, chunks, settings.chunk, width, down.shape[2], up.shape[2]
    shared = query_features is None
    return ScanSizes(*shape, settings.prefix, settings.end, parts, shared, settings.down_limit, settings.up_limit)


def _memory(s: ScanSizes, start: str = "") -> Shapes:
    momentum = s.end == ChunkEnd.momentum
    shapes = [(s.rows, s.width, s.hidden), (s.rows, 2 * s.hidden, s.features)]
    return {
        start + name: shape
        for name, shape in zip(MEMORY, [*shapes, *(shapes if momentum else [None] * 2)], strict=True)
    }


def _tokens(s: ScanSizes, *names: str) -> Shapes:
    tokens = s.rows, s.chunks * s.chunk
    shapes: Shapes = {"features": None if s.shared else (*tokens, s.features), "rate": tokens}
    return {name: shapes.get(name.rpartition("_")[2], (*tokens, s.width)) for name in names}


def _gates(s: ScanSizes, name: str) -> Shapes:
    return {name: (s.rows, s.chunks, 2) if s.end == ChunkEnd.momentum else None}


def _saved(s: ScanSizes) -> Shapes:
    """Intermediate values for the backward pass, a tensor for each chunk: the allocator reuses small ones."""
    shape = s.rows, floats("atlas_scan_floats", s)
    return {f"saved {part}": shape for part in range(s.parts)}


def _inputs(s: ScanSizes) -> Shapes:
    fields = _tokens(s, "query", "key", "value", "query_features", "key_features", "rate")
    return {**fields, **_gates(s, "gates"), **_memory(s)}


def _results(s: ScanSizes) -> Shapes:
    return {**_tokens(s, "out"), **_memory(s, "after_"), **_saved(s)}


WIDTHS = "width", "hidden", "features"
STRIDED = frozenset({"query", "key", "value", "query_features", "key_features", "rate"})
FORWARD = Kernel("atlas_scan_forward", _inputs, _results, WIDTHS, strided=STRIDED)
BACKWARD = Kernel(
    "atlas_scan_backward",
    lambda s: {
        **_inputs(s),
        **_memory(s, "after_"),
        **_tokens(s, "d_out"),
        **_memory(s, "d_after_"),
        **_saved(s),
    },
    lambda s: {
        **(_tokens(s, "d_query") if s.shared else {"d_query": None}),
        **_tokens(s, "d_key", "d_value", "d_query_features", "d_key_features", "d_rate"),
        **_gates(s, "d_gates"),
        **_memory(s, "d_"),
    },
    WIDTHS,
    strided=STRIDED,
    optional=frozenset(f"d_after_{name}" for name in MEMORY),
)
_TENSORS = (
    "Tensor query, Tensor key, Tensor value, Tensor? query_features, Tensor? key_features, Tensor rate, Tensor? gates, "
    "Tensor down, Tensor up, Tensor? momentum_down, Tensor? momentum_up"
)
_SETTINGS = "int chunk, bool prefix, int end, float down_limit, float up_limit, bool save"
INPUTS = FIELDS + 1 + len(MEMORY)  # tensors
forward = operator(
    f"whole_chunks({_TENSORS}, {_SETTINGS}) -> Tensor[]",
    FORWARD,
    lambda *given: (_sizes(given, ScanSettings(*given[INPUTS:])), given[:INPUTS]),
    hidden=lambda sizes, *given: 0 if given[-1] else sizes.parts,
)
backward = operator(
    f"whole_chunks_backward({_TENSORS}, Tensor[] after, Tensor d_out, Tensor?[] d_after, Tensor[] saved, {_SETTINGS}) "
    "-> Tensor[]",
    BACKWARD,
    lambda *given: (
        _sizes(given, ScanSettings(*given[INPUTS + 4 :])),
        (*given[:INPUTS], *_four(given[INPUTS]), given[INPUTS + 1], *_four(given[INPUTS + 2]), *given[INPUTS + 3]),
    ),
)


def _four(memory: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """`memory`, with None in place of a missing momentum."""
    return (*memory, None, None)[: len(MEMORY)]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.settings = ScanSettings(*inputs[INPUTS:])
    ctx.after = 4 if ctx.settings.end == ChunkEnd.momentum else 2
    ctx.save_for_backward(*inputs[:INPUTS], *output[1:])
    ctx.mark_non_differentiable(*output[1 + ctx.after :])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, given: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    all_tensors = ctx.saved_tensors  # may be read once
    tensors, others = all_tensors[:INPUTS], all_tensors[INPUTS:]
    d_out, *d_others = given
    d_out = tensors[0].new_zeros(tensors[0].shape) if d_out is None else d_out
    after, saved = list(others[: ctx.after]), list(others[ctx.after :])
    found = backward(*tensors, after, d_out, d_others[: ctx.after], saved, *ctx.settings)
    d_tokens: list[Tensor | None]
    if tensors[3] is None:
        *shared, d_rate = found[:4]
        d_tokens, d_memory = [*shared, None, None, d_rate], found[4:]
    else:
        d_tokens, d_memory = [d_out, *found[:5]], found[5:]
    momentum = ctx.after > 2  # gates, and two matrices more
    d_memory = d_memory if momentum else [None, *d_memory, None, None]
    return *d_tokens, *d_memory, *[None] * len(ctx.settings)


forward.register_autograd(_gradients, setup_context=_save_for_backward)


ENDS = frozenset({ChunkEnd.step, ChunkEnd.momentum})


def closed_chunks(
    end: ChunkEnd, start: FastWeights, kept: Kept, tokens: ChunkInputs, chunk: int, norm_max: float, prefix: bool
) -> tuple[Tensor, FastWeights, Kept]:
    """Whole chunks, one after the other -> out [N, T, d], the weights and what the rule keeps after them."""
    settings = ScanSettings(chunk, prefix, int(end), *norm_limits(start, norm_max), is_grad_enabled())
    if end is ChunkEnd.step:
        out, down, up, *_ = forward(*_fields(tokens), None, *start, None, None, *settings)
        return out, FastWeights(down, up), kept
    state = MomentumState(*kept)
    gates = tokens.controls.unflatten(1, (-1, chunk)).mean(2)  # [N, n, 2] theta and 1 - alpha of each chunk
    out, *after = forward(*_fields(tokens), gates, *start, *state.momentum, *settings)
    return out, FastWeights(*after[:2]), state.next_chunk(FastWeights(*after[2:4]))


def chunk_update(start: FastWeights, tokens: ChunkInputs, prefix: bool) -> tuple[Tensor, FastWeights]:
    """One chunk, or the start of one -> out [N, C, d], and the sum of its scaled gradients."""
    settings = ScanSettings(tokens.rate.shape[1], prefix, int(ChunkEnd.updates), inf, inf, is_grad_enabled())
    out, down, up, *_ = forward(*_fields(tokens), None, *start, None, None, *settings)
    return out, FastWeights(down, up)


def _fields(tokens: ChunkInputs) -> list[Tensor | None]:
    """Those of the operator. Features of degree 1 are the queries and keys: they are left out, and the backward pass
    adds up the two gradients of each where they are in the cache."""
    fields: list[Tensor | None] = list(tokens[:FIELDS])
    if tokens.query_features is tokens.query and tokens.key_features is tokens.key:
        fields[3:5] = None, None
    return fields
