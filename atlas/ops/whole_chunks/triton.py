"""Chunks in a row by the Triton kernels of `atlas/kernels/triton_scan.py`.

On a GPU, chunk by chunk, PyTorch's operations launch some 130 kernels a chunk, which takes longer than their work. Here
a stretch is one kernel each way.

Legend: N rows, n chunks, C tokens of each, R tokens of a tile, M tiles of a chunk, T = n * C, d head width, h hidden
width, p feature width, STATE = d h + 2 h p.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from math import ceil, inf
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch.autograd.function import once_differentiable

from atlas.config import TRITON_WIDTHS
from atlas.kernels import gpu
from atlas.ops.dual_form import ChunkInputs, cut_fields
from atlas.ops.fast_weights import FastWeights, add, bound_norm, norm_limits, scale, subtract
from atlas.ops.rules.momentum import MomentumState
from atlas.ops.rules.rule import ChunkEnd, Kept
from atlas.ops.whole_chunks import torch as plain

ENDS = frozenset({ChunkEnd.step, ChunkEnd.momentum})
LONGEST = 128  # tokens of a chunk whose tiles come one after the other
TILE = 16  # tokens: the least that `tl.dot` takes; larger tiles need more registers than there are
WARPS = 8

chunk_update = plain.chunk_update  # of an open chunk


class Variant(NamedTuple):
    """What a kernel is compiled for."""

    chunk: int  # C
    width: int  # d
    hidden: int  # h
    features: int  # p
    prefix: bool  # whether a token reads what its chunk has written so far
    momentum: bool
    products: str  # `bf16`, or with the interpreter `emulated` or `float32`

    @property
    def constants(self) -> dict[str, Any]:
        return {
            "C": self.chunk, "R": TILE, "D": self.width, "H": self.hidden, "P": self.features,
            "PREFIX": self.prefix, "MOMENTUM": self.momentum, "PRODUCTS": self.products,
        }  # fmt: skip

    @property
    def kept(self) -> int:
        """Weights kept of a chunk: those before every tile, or those that all of its tokens read."""
        return ceil(self.chunk / TILE) if self.prefix else 1

    @property
    def state(self) -> int:
        return self.width * self.hidden + 2 * self.hidden * self.features


def takes(end: ChunkEnd, start: FastWeights, tokens: ChunkInputs, chunk: int, *, prefix: bool) -> bool:
    """Whether the kernels take chunks of these weights and tokens, closed by `end`, where bf16 products are wanted.

    The first time this compiles them. If that fails, the answer is no from now on, and a warning says why.
    """
    widths = {*start.down.shape[1:], start.up.shape[2]}
    tensors = *start, *tokens[:6]
    length = chunk <= LONGEST or (not prefix and chunk % LONGEST == 0)
    fits = end in ENDS and length and widths <= set(TRITON_WIDTHS)
    if not fits or not all(part.dtype is torch.float32 and gpu.takes(part) for part in tensors):
        return False
    momentum = end is ChunkEnd.momentum and chunk <= LONGEST
    return gpu.interpreted() or _compiles(variant_of(start, min(chunk, LONGEST), prefix, momentum))


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


def scan(
    variant: Variant,
    limits: tuple[float, float],
    tokens: ChunkInputs,
    start: FastWeights,
    momentum: FastWeights | None = None,
) -> tuple[Tensor, ...]:
    """-> out [N, T, d], W1 [N, d, h], W2 over W3 [N, 2h, p], and with momentum S1 and S23 of the same shapes."""
    gates = None if momentum is None else tokens.controls.unflatten(1, (-1, variant.chunk)).mean(2)
    given = momentum or (None, None)
    fields = (part if part.stride(-1) == 1 else part.contiguous() for part in tokens[:5])
    settings = variant, limits, is_grad_enabled()
    found: tuple[Tensor, ...] = TritonScan.apply(*settings, *fields, tokens.rate, gates, *start, *given)  # type: ignore[no-untyped-call]
    return found if variant.momentum else found[:3]


class TritonScan(torch.autograd.Function):
    """(variant, limits, keep, q, k, v, phi(q), phi(k), rate, gates [N, n, 2] or None, W1, W23, S1, S23 or None)."""

    @staticmethod
    def forward(
        ctx: Any,
        variant: Variant,
        limits: tuple[float, float],
        keep: bool,  # what the backward pass needs
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_features: Tensor,
        key_features: Tensor,
        rate: Tensor,
        gates: Tensor | None,
        down: Tensor,
        up: Tensor,
        momentum_down: Tensor | None,
        momentum_up: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        from atlas.kernels.triton_scan import scan_forward

        rows, total, width = query.shape
        chunks = total // variant.chunk
        start = _flat(down, up)
        # In half precision the products round what is kept all the same.
        kind = torch.bfloat16 if variant.products != "float32" else torch.float32
        out = query.new_empty(rows, total, width)
        states = query.new_empty((rows, chunks * variant.kept, variant.state) if keep else (1,), dtype=kind)
        momenta = query.new_empty((rows, chunks, variant.state) if keep and variant.momentum else (1,), dtype=kind)
        scales = query.new_empty(rows, chunks, 2)
        end = torch.empty_like(start)
        momentum = end if momentum_down is None or momentum_up is None else _flat(momentum_down, momentum_up)
        gates = scales if gates is None else gates.contiguous()
        tokens = query, key, value, query_features, key_features, rate
        scan_forward[(rows,)](
            *tokens, gates, start, out, states, momenta, scales, end, momentum,
            *_strides(*tokens), chunks, *limits, **variant.constants, KEEP=keep, num_warps=WARPS,
        )  # fmt: skip
        ctx.save_for_backward(key, value, query_features, key_features, rate, gates, states, momenta, scales, end)
        ctx.settings = variant, limits
        after = _matrices(momentum, variant) if variant.momentum else (None, None)
        return out, *_matrices(end, variant), *after

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_out: Tensor, d_down: Tensor, d_up: Tensor, d_momentum_down: Tensor, d_momentum_up: Tensor
    ) -> tuple[Tensor | None, ...]:
        from atlas.kernels.triton_scan import scan_backward

        key, value, query_features, key_features, rate, gates, states, momenta, scales, end = ctx.saved_tensors
        variant, limits = ctx.settings
        rows, total, _ = key.shape
        chunks = total // variant.chunk
        d_residual, d_query_features, d_key_features, d_rate = (
            part.new_empty(part.shape) for part in (key, query_features, key_features, rate)
        )
        d_gates, d_start = torch.empty_like(scales), torch.empty_like(end)
        d_momentum = _flat(d_momentum_down, d_momentum_up) if variant.momentum else d_start
        tokens = key, value, query_features, key_features, rate
        scan_backward[(rows,)](
            *tokens, gates, states, momenta, scales, end, d_out.contiguous(), _flat(d_down, d_up),
            d_residual, d_query_features, d_key_features, d_rate, d_gates, d_start, d_momentum,
            *_strides(*tokens), chunks, *limits, **variant.constants, num_warps=WARPS,
        )  # fmt: skip
        d_tokens = d_out, d_residual, -d_residual, d_query_features, d_key_features, d_rate
        d_after = (d_gates, _matrices(d_momentum, variant)) if variant.momentum else (None, (None, None))
        return None, None, None, *d_tokens, d_after[0], *_matrices(d_start, variant), *d_after[1]


@cache
def _compiles(variant: Variant) -> bool:
    """Compile both kernels of a variant, before any work is given to them."""
    from atlas.kernels.triton_scan import scan_backward, scan_forward

    kept, numbers = torch.bfloat16, torch.float32
    strides = [16] * 12
    sizes = 16, 1.0, 1.0  # chunks and bounds
    try:
        forward = [*[numbers] * 9, kept, kept, *[numbers] * 3, *strides, *sizes]
        for keep in (True, False):
            scan_forward.warmup(*forward, **variant.constants, KEEP=keep, num_warps=WARPS, grid=(1,))
        backward = [*[numbers] * 6, kept, kept, *[numbers] * 11, *strides[2:], *sizes]
        scan_backward.warmup(*backward, **variant.constants, num_warps=WARPS, grid=(1,))
    except Exception as error:  # of the compiler, of many types
        warnings.warn(f"{gpu.give_up(error)}; PyTorch's operations do its work", RuntimeWarning, stacklevel=2)
        return False
    return True


def _strides(*tensors: Tensor) -> list[int]:
    """Of row and token."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _flat(down: Tensor, up: Tensor) -> Tensor:
    """-> [N, STATE], of its own storage."""
    return torch.cat((down.flatten(1), up.flatten(1)), dim=1)


def _matrices(flat: Tensor, variant: Variant) -> Sequence[Tensor]:
    """[N, STATE] -> W1 [N, d, h] and W2 over W3 [N, 2h, p]."""
    down, up = flat.split([variant.width * variant.hidden, 2 * variant.hidden * variant.features], dim=1)
    return down.unflatten(1, (variant.width, variant.hidden)), up.unflatten(1, (2 * variant.hidden, variant.features))
