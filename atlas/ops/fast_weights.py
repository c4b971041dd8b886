"""The memory network: a gated MLP whose weights are data, one set for each sequence and head.

Legend: N sequences x heads (x shards), C tokens, d head width, p feature width, h hidden width.

    f(x; W) = x + W1 (silu(W2 phi(x)) * (W3 phi(x)))          W1: d x h     W2, W3: h x p

W2 and W3 are stacked in one matrix `up`, so that one matrix product computes both.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class FastWeights(NamedTuple):
    """Weights of the memory network, or a sum of updates of the same shape."""

    down: Tensor  # [N, d, h]   W1
    up: Tensor  # [N, 2h, p]    W2 over W3


class Hidden(NamedTuple):
    """Forward pass of the hidden layer, kept for the gradient."""

    units: Tensor  # [N, C, h]     U = silu(A2) * A3
    activated: Tensor  # [N, C, h] silu(A2)
    linear: Tensor  # [N, C, h]    A3
    slope: Tensor  # [N, C, h]     silu'(A2)


def gated_units(pre: Tensor) -> Tensor:
    """U = silu(A2) * A3 from the stacked pre-activations [N, C, 2h]."""
    gate, linear = pre.chunk(2, dim=-1)
    return F.silu(gate) * linear


def hidden_layer(pre: Tensor) -> Hidden:
    """The hidden layer with what its gradient needs, from the stacked pre-activations [N, C, 2h]."""
    gate, linear = pre.chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    activated = gate * sigmoid
    slope = sigmoid + activated * (1 - sigmoid)
    return Hidden(activated * linear, activated, linear, slope)


def read(weights: FastWeights, query: Tensor, features: Tensor) -> Tensor:
    """f(q; W) for all C queries [N, C, d] with features phi(q) [N, C, p] -> [N, C, d]."""
    units = gated_units(features @ weights.up.mT)
    return query + units @ weights.down.mT


def bound_error(error: Tensor) -> Tensor:
    """Error rows scaled by 1 / sqrt(1 + ||e||^2), so that no single token changes the weights much."""
    return error * torch.rsqrt(1 + error.square().sum(-1, keepdim=True))


def add(weights: FastWeights, update: FastWeights) -> FastWeights:
    return FastWeights(weights.down + update.down, weights.up + update.up)


def subtract(weights: FastWeights, update: FastWeights) -> FastWeights:
    return FastWeights(weights.down - update.down, weights.up - update.up)


def scale(weights: FastWeights, factor: Tensor) -> FastWeights:
    """Weights times a factor per row [N]."""
    factor = factor[:, None, None]
    return FastWeights(weights.down * factor, weights.up * factor)


def zeros_like(weights: FastWeights) -> FastWeights:
    return FastWeights(torch.zeros_like(weights.down), torch.zeros_like(weights.up))


def bound_norm(weights: FastWeights, limit: float) -> FastWeights:
    """Scale a matrix back to its norm limit if its Frobenius norm is above, so that no inner loop diverges."""
    down, up = norm_limits(weights, limit)
    return FastWeights(_bounded(weights.down, down), _bounded(weights.up, up))


def norm_limits(weights: FastWeights, limit: float) -> tuple[float, float]:
    """Largest Frobenius norms: `limit * sqrt(h)` for `down`, `limit * sqrt(h * p / d)` for `up`."""
    width, hidden = weights.down.shape[-2:]
    down = limit * hidden**0.5
    return down, down * (weights.up.shape[-1] / max(width, 1)) ** 0.5  # a width of 0 has empty matrices


def _bounded(matrix: Tensor, bound: float) -> Tensor:
    # On a GPU the test would cost a synchronisation, and what is compiled goes one way for all numbers.
    asks = matrix.is_cpu and not torch.compiler.is_compiling()
    if asks and bool((torch.linalg.vector_norm(matrix.detach(), dim=(-2, -1)) <= bound).all()):
        return matrix  # the usual case
    square = matrix.square().sum((-2, -1), keepdim=True)
    return matrix * (bound * torch.rsqrt(square.clamp(min=bound * bound)))
