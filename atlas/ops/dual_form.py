"""Dual form: a chunk's gradients and the reads of its causal prefix as matrix products: TNT Eq 3,
docs/memory.md section 5.

Legend: N rows, C tokens of a chunk or a part of it, J written tokens, d head width, p feature width, h hidden width.

All gradients of a chunk are taken at its start weights W, so the gradient of token j is of rank one per matrix:
grad W1 = e_j u_j^T, grad up = s_j phi(k_j)^T. What token t reads,

    W_t = W - sum_j seen[t, j] grad_j,      f(q_t; W_t),

is then a masked product of token Gram matrices, and W_t is never built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from atlas.ops.fast_weights import FastWeights, bound_error, gated_units, hidden_layer

Cut = TypeVar("Cut")


class ChunkInputs(NamedTuple):
    """Tokens of a stretch, of one chunk, or of a part of one."""

    query: Tensor  # [N, C, d]
    key: Tensor  # [N, C, d]
    value: Tensor  # [N, C, d]
    query_features: Tensor  # [N, C, p]
    key_features: Tensor  # [N, C, p]
    rate: Tensor  # [N, C]  inner rate eta
    controls: Tensor  # [N, C, n]  further gates of the learning rule


def cut_fields(fields: Iterable[Tensor], cut: Callable[[Tensor], Cut]) -> tuple[Cut, ...]:
    """`cut` of every field. A field that occurs twice (features of degree 1 are the keys) is cut once, so that the
    backward pass adds the gradients of its pieces once."""
    fields = tuple(fields)
    done: list[Cut] = []  # annotated: PyTorch 2.11 cannot trace list[Cut]()
    for number, field in enumerate(fields):
        same = next((at for at in range(number) if fields[at] is field), None)
        done.append(cut(field) if same is None else done[same])
    return tuple(done)


class Coverage(NamedTuple):
    """How much of write j is in the weights that token t reads: gate_j * sum_{s <= t} rate_s band[s, j]."""

    rate: Tensor  # [N, C]
    gate: Tensor  # [N, J]
    band: Tensor  # [C, J] 1 where token s writes the gradient of token j

    def seen(self) -> Tensor:
        """Per token t: [N, C, J]."""
        count = self.rate.shape[1]
        return torch.tril(self.rate.unsqueeze(1).expand(-1, count, -1)) @ self.band * self.gate.unsqueeze(1)

    def total(self) -> Tensor:
        """After the last token: [N, J]."""
        return self.rate @ self.band * self.gate


class Writes(NamedTuple):
    """Per-token gradients at the chunk's start, in factored form."""

    error: Tensor  # [N, J, d]   bounded f(k) - v
    units: Tensor  # [N, J, h]
    signal: Tensor  # [N, J, 2h]
    features: Tensor  # [N, J, p] phi(k)
    coverage: Coverage | None  # None: J = C, the error holds the rate, and token t has seen the writes j <= t


def token_gradients(start: FastWeights, key: Tensor, value: Tensor, features: Tensor, rate: Tensor | None) -> Writes:
    """Gradients of the inner loss of every token at the weights `start`, scaled by `rate` [N, J] if there is one.

    Departure from the papers: error rows are bounded, so the loss is sqrt(1 + ||f(k) - v||^2) - 1, not half the square.
    """
    hidden = hidden_layer(features @ start.up.mT)
    error = bound_error(key + hidden.units @ start.down.mT - value)
    if rate is not None:
        error = rate.unsqueeze(-1) * error
    back = error @ start.down  # [N, J, h]  dU
    signal = torch.cat((back * hidden.linear * hidden.slope, back * hidden.activated), dim=-1)
    return Writes(error, hidden.units, signal, features, None)


def write_sum(writes: Writes) -> FastWeights:
    """Sum of all writes, as an update of the weights."""
    error, signal = writes.error, writes.signal
    if writes.coverage is not None:
        total = writes.coverage.total().unsqueeze(-1)
        error, signal = error * total, signal * total
    return FastWeights(error.mT @ writes.units, signal.mT @ writes.features)


def read_prefix(current: FastWeights, writes: Writes, tokens: ChunkInputs) -> Tensor:
    """f(q_t; W_t) where W_t = `current` minus this part's writes up to and including token t: [N, C, d]."""
    seen = None if writes.coverage is None else writes.coverage.seen()
    gram = _masked(tokens.query_features @ writes.features.mT, seen)  # [N, C, J]
    pre = torch.baddbmm(tokens.query_features @ current.up.mT, gram, writes.signal, alpha=-1)
    units = gated_units(pre)
    kernel = _masked(units @ writes.units.mT, seen)
    out = torch.baddbmm(tokens.query, units, current.down.mT)
    return torch.baddbmm(out, kernel, writes.error, alpha=-1)


def _masked(gram: Tensor, seen: Tensor | None) -> Tensor:
    return torch.tril(gram) if seen is None else gram * seen
