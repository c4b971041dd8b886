"""Learning rule `gd`: one gradient step per token, all gradients of a chunk taken at the chunk's start (TNT Eq 3).

    W_t = W_xi - sum_{tau = xi .. t} eta_tau grad l(W_xi; k_tau, v_tau),   l = 1/2 ||f(k; W) - v||^2,   then read f(q_t; W_t)

in dual form: the causal prefix sums are masked products of token Gram matrices, so W_t is never built (memory.md section 4).
Departure from the paper: error rows are bounded (`bound_error`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atlas.ops.fast_weights import FastWeights, bound_error, gated_units, hidden_layer


class ChunkInputs(NamedTuple):
    """Tokens of one chunk, or of a part of it."""

    query: Tensor  # [N, C, d]
    key: Tensor  # [N, C, d]
    value: Tensor  # [N, C, d]
    query_features: Tensor  # [N, C, p]
    key_features: Tensor  # [N, C, p]
    rate: Tensor  # [N, C]  inner rate eta


class ChunkGradient(NamedTuple):
    """Per-token gradients at the chunk's start, in factored form: grad W1 = error^T units, grad up = signal^T phi(k)."""

    error: Tensor  # [N, C, d]   rate * bounded (f(k) - v)
    units: Tensor  # [N, C, h]
    signal: Tensor  # [N, C, 2h]


def chunk_gradient(start: FastWeights, tokens: ChunkInputs) -> ChunkGradient:
    """Gradients of the inner loss of every token at the weights `start`, scaled by the tokens' rates."""
    hidden = hidden_layer(tokens.key_features @ start.up.mT)
    error = tokens.key + hidden.units @ start.down.mT - tokens.value
    error = tokens.rate.unsqueeze(-1) * bound_error(error)
    back = error @ start.down  # [N, C, h]  dU
    signal = torch.cat((back * hidden.linear * hidden.slope, back * hidden.activated), dim=-1)
    return ChunkGradient(error, hidden.units, signal)


def gradient_sum(gradient: ChunkGradient, key_features: Tensor) -> FastWeights:
    """Sum of the chunk's scaled gradients, as an update of the weights."""
    return FastWeights(gradient.error.mT @ gradient.units, gradient.signal.mT @ key_features)


def read_prefix(current: FastWeights, gradient: ChunkGradient, tokens: ChunkInputs) -> Tensor:
    """f(q_t; W_t) where W_t = `current` minus the gradients of this part's tokens up to and including t: [N, C, d]."""
    seen = torch.tril(tokens.query_features @ tokens.key_features.mT)  # [N, C, C]
    pre = torch.baddbmm(tokens.query_features @ current.up.mT, seen, gradient.signal, alpha=-1)
    units = gated_units(pre)
    kernel = torch.tril(units @ gradient.units.mT)  # [N, C, C]
    out = torch.baddbmm(tokens.query, units, current.down.mT)
    return torch.baddbmm(out, kernel, gradient.error, alpha=-1)
