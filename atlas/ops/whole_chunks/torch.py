"""One chunk of the dual form with a hand-derived backward pass, in PyTorch's operations.

The same function as `token_gradients`, `read_prefix` (with `prefix`, for a chunk that starts fresh; else `read`) and
`write_sum` of `dual_form.py` in turn. The backward pass has the same matrix products as autograd's, but stacks those
that share a factor, and keeps or writes far fewer temporaries. `tests/unit/ops/test_fused_chunk.py` compares both,
gradients too.

Legend: N rows, C tokens, d head width, p feature width, h hidden width. A name with `d_` is the gradient of that name.

    A = K W^T,  U = silu(A2) A3,  E = eta r e with e = k + U W1^T - v, r = (1 + ||e||^2)^-1/2
    X = [E W1 A3 silu'(A2), E W1 silu(A2)]                           gradients at the chunk's start: E^T U and X^T K
    R = Q W^T - tril(Q K^T) X,  Z = silu(R2) R3                      the hidden layer that token t reads
    out = q + Z W1^T - tril(Z U^T) E

Without `prefix` every token reads the chunk's start: the two terms with tril are left out. With `step` the chunk is
closed as well: its updates come subtracted from its start weights, in the same pass as they are summed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas.ops.dual_form import ChunkInputs, cut_fields
from atlas.ops.fast_weights import FastWeights, bound_norm
from atlas.ops.first_order import first_order
from atlas.ops.rules.rule import ChunkEnd, Kept

ENDS = frozenset({ChunkEnd.step})  # of chunks in a row; with momentum nothing would be gained


def closed_chunks(
    end: ChunkEnd, start: FastWeights, kept: Kept, tokens: ChunkInputs, chunk: int, norm_max: float, prefix: bool
) -> tuple[Tensor, FastWeights, Kept]:
    """Whole chunks, one after the other -> out [N, T, d], the weights and what the rule keeps after them."""
    outputs: list[Tensor] = []
    # Split at once: a slice per chunk would cost the backward pass a zero-filled gradient of the whole stretch.
    for fields in zip(*cut_fields(tokens[:6], lambda field: field.split(chunk, dim=1)), strict=True):
        out, *weights = fused_chunk(prefix, True, *start, *fields)
        start = bound_norm(FastWeights(*weights), norm_max)
        outputs.append(out)
    return torch.cat(outputs, dim=1), start, kept


def chunk_update(start: FastWeights, tokens: ChunkInputs, prefix: bool) -> tuple[Tensor, FastWeights]:
    """One chunk, or the start of one -> out [N, C, d], and the sum of its scaled gradients."""
    out, *update = fused_chunk(prefix, False, *start, *tokens[:6])
    return out, FastWeights(*update)


def fused_chunk(prefix: bool, step: bool, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `FusedChunk`."""
    found: tuple[Tensor, Tensor, Tensor] = FusedChunk.apply(prefix, step, *tensors)  # type: ignore[no-untyped-call]
    return found


class FusedChunk(torch.autograd.Function):
    """(prefix, step, down, up, q, k, v, phi(q), phi(k), rate) -> out [N, C, d], and down [N, d, h] and up [N, 2h, p]:
    their updates, or with `step` the weights after them."""

    @staticmethod
    def forward(
        ctx: Any,
        prefix: bool,
        step: bool,
        down: Tensor,
        up: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_features: Tensor,
        key_features: Tensor,
        rate: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, hidden = query.shape[1], down.shape[2]
        features = torch.cat((key_features, query_features), dim=1)
        pre = features @ up.mT
        pre_key, pre_query = pre[:, :count], pre[:, count:]
        gate, linear = pre_key.split(hidden, dim=2)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        slope = _slope(sigmoid, silu)
        units = silu * linear
        residual = torch.baddbmm(key, units, down.mT).sub_(value)
        bound = torch.rsqrt(residual.square().sum(2, keepdim=True).add_(1))
        error = residual * (bound * rate.unsqueeze(2))
        back = error @ down
        signal = torch.empty_like(pre_key)
        torch.mul(back * linear, slope, out=signal[:, :, :hidden])
        torch.mul(back, silu, out=signal[:, :, hidden:])
        gram = (query_features @ key_features.mT).tril_() if prefix else None
        read = pre_query if gram is None else torch.baddbmm(pre_query, gram, signal, alpha=-1)
        read_gate, read_linear = read.split(hidden, dim=2)
        read_sigmoid = torch.sigmoid(read_gate)
        read_silu = read_gate * read_sigmoid
        read_units = read_silu * read_linear
        out = torch.baddbmm(query, read_units, down.mT)
        kernel = (read_units @ units.mT).tril_() if prefix else None
        if kernel is not None:
            out.baddbmm_(kernel, error, alpha=-1)
        ctx.save_for_backward(
            down, up, features, rate, pre_key, sigmoid, silu, slope, units, residual, bound, error,
            back, signal, gram, read, read_sigmoid, read_silu, read_units, kernel,
        )  # fmt: skip
        ctx.step = step
        if step:
            after_down = torch.baddbmm(down, error.mT, units, alpha=-1)
            return out, after_down, torch.baddbmm(up, signal.mT, key_features, alpha=-1)
        return out, error.mT @ units, signal.mT @ key_features

    @staticmethod
    @first_order
    def backward(ctx: Any, d_out: Tensor, d_result_down: Tensor, d_result_up: Tensor) -> tuple[Tensor | None, ...]:
        (
            down, up, features, rate, pre_key, sigmoid, silu, slope, units, residual, bound, error,
            back, signal, gram, read, read_sigmoid, read_silu, read_units, kernel,
        ) = ctx.saved_tensors  # fmt: skip
        count, hidden = d_out.shape[1], down.shape[2]
        d_update_down, d_update_up = (-d_result_down, -d_result_up) if ctx.step else (d_result_down, d_result_up)
        key_features, query_features = features[:, :count], features[:, count:]
        linear, read_linear = pre_key[:, :, hidden:], read[:, :, hidden:]

        # out = q + Z W1^T - kernel E, kernel = tril(Z U^T)
        d_read_units = d_out @ down
        d_error = units @ d_update_down.mT
        d_units = error @ d_update_down
        if kernel is not None:
            minus_d_kernel = (d_out @ error.mT).tril_()
            d_read_units.baddbmm_(minus_d_kernel, units, alpha=-1)
            d_error.baddbmm_(kernel.mT, d_out, alpha=-1)
            d_units.baddbmm_(minus_d_kernel.mT, read_units, alpha=-1)

        # Z = silu(R2) R3, R = Q W^T - gram X
        d_both = read.new_empty(features.shape[0], 2 * count, 2 * hidden)  # of keys over queries
        d_pre, d_read = d_both[:, :count], d_both[:, count:]
        read_slope = _slope(read_sigmoid, read_silu)
        torch.mul(d_read_units * read_linear, read_slope, out=d_read[:, :, :hidden])
        torch.mul(d_read_units, read_silu, out=d_read[:, :, hidden:])
        d_signal = key_features @ d_update_up.mT
        if gram is not None:
            d_signal.baddbmm_(gram.mT, d_read, alpha=-1)

        # X = [back A3 silu'(A2), back silu(A2)], back = E W1, E = eta r e
        d_signal_gate, d_signal_linear = d_signal.split(hidden, dim=2)
        d_back = torch.addcmul(d_signal_gate * linear * slope, d_signal_linear, silu)
        d_error.baddbmm_(d_back, down.mT)
        along = (residual * d_error).sum(2, keepdim=True)
        scale = bound * rate.unsqueeze(2)
        d_residual = torch.addcmul(d_error * scale, residual, scale * bound.square() * along, value=-1)
        d_units.baddbmm_(d_residual, down)

        # U = silu(A2) A3, A = K W^T
        d_back_slope = d_signal_gate * back
        torch.addcmul(d_units * silu, d_back_slope, slope, out=d_pre[:, :, hidden:])
        d_silu = torch.addcmul(d_units * linear, d_signal_linear, back)
        curvature = torch.addcmul(sigmoid + slope, sigmoid, slope, value=-2)  # silu''
        torch.addcmul(d_silu * slope, d_back_slope * linear, curvature, out=d_pre[:, :, :hidden])

        d_down = torch.baddbmm(d_result_down, d_out.mT, read_units, beta=int(ctx.step))
        d_down.baddbmm_(error.mT, d_back).baddbmm_(d_residual.mT, units)
        # Stacked: keys and queries in one product.
        d_up = torch.baddbmm(d_result_up, d_both.mT, features, beta=int(ctx.step))
        d_features = d_both @ up
        d_key_features = d_features[:, :count].baddbmm(signal, d_update_up)
        d_query_features = d_features[:, count:]
        if gram is not None:
            minus_d_gram = (d_read @ signal.mT).tril_()
            d_key_features.baddbmm_(minus_d_gram.mT, query_features, alpha=-1)
            d_query_features = d_query_features.baddbmm(minus_d_gram, key_features, alpha=-1)
        d_rate = (bound * along).squeeze(2)
        return None, None, d_down, d_up, d_out, d_residual, -d_residual, d_query_features, d_key_features, d_rate


def _slope(sigmoid: Tensor, silu: Tensor) -> Tensor:
    """silu'(x) = sigmoid(x) + silu(x) (1 - sigmoid(x))"""
    return torch.addcmul(sigmoid + silu, silu, sigmoid, value=-1)
