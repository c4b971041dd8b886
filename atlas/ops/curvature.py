"""How strongly the writes of a chunk act together, and how much they are scaled down for it.

All gradients of a chunk are taken at its start weights, so a chunk is one step of gradient descent. Such a step is
stable while the step size times the curvature of the loss is at most 2. Where keys are alike, a long chunk is far above
that: it overshoots, the next chunk overshoots back, and the gradient of the outer loss grows by a factor per chunk.
A global memory is read at the start of a chunk, so that all of a chunk can decide (`damped_rates`). A token of a local
memory reads a part of its chunk, when the rest is not known yet: so the tokens so far decide (`causally_damped`).

Legend: N rows, T tokens, C tokens of a chunk, n chunks, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def curvature(key: Tensor, rate: Tensor) -> Tensor:
    """sum_t eta_t k_t k_t^T of keys [..., T, d] and rates [..., T]: [..., d, d].

    Step size times curvature of a linear memory with the loss ||M k - v||^2 / 2.
    """
    return (key * rate.unsqueeze(-1)).mT @ key


def damping(curvature: Tensor, maximum: float) -> Tensor:
    """What the writes are multiplied by, of curvature [..., d, d]: [...], at most 1.

    The Frobenius norm stands for the largest eigenvalue, which is never larger.
    """
    square = curvature.square().sum((-2, -1))
    return maximum * torch.rsqrt(square.clamp(min=maximum * maximum))


def causally_damped(key: Tensor, rate: Tensor, maximum: float, before: Tensor | None = None) -> Tensor:
    """Rates [..., T] of one chunk with keys [..., T, d], each scaled down for what was written along its key already.

    eta_t min(1, (maximum / 2 / s_t)^2), s_t = sum_{i <= t} eta_i (k_i . k_t)^2. So unit keys that are equal write as if
    their rates added up to less than `maximum`, and nothing changes up to half of it. `before` [..., d, d]: the
    curvature of the chunk's earlier tokens.
    """
    along = ((key @ key.mT).square().tril() @ rate.unsqueeze(-1)).squeeze(-1)
    if before is not None:
        along = along + ((key @ before) * key).sum(-1)
    unchanged = maximum / 2
    return rate * (unchanged / along.clamp(min=unchanged)).square()


def damped_rates(key: Tensor, rate: Tensor, chunk: int, maximum: float) -> Tensor:
    """Rates [N, n * C] of whole chunks of C tokens with keys [N, n * C, d], each chunk scaled down by itself."""
    key, rate = key.unflatten(1, (-1, chunk)), rate.unflatten(1, (-1, chunk))
    return (rate * damping(curvature(key, rate), maximum).unsqueeze(-1)).flatten(1)
