"""The slow truth: one row, one token at a time, inner gradients by autograd at the weights that the equations name.

Nothing is shared with the fast forms. Matrices are those of docs/memory.md section 4:

    f(x; W) = x + W1 (silu(W2 phi(x)) * (W3 phi(x)))
    l(W; k, v) = sqrt(1 + ||f(k; W) - v||^2) - 1         half the squared error, its gradient bounded

Legend: d head width, p feature width, h hidden width, n controls, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import Rule
from atlas.config.choices import Choices


class Weights(NamedTuple):
    W1: Tensor  # [d, h]
    W2: Tensor  # [h, p]
    W3: Tensor  # [h, p]


class Token(NamedTuple):
    query: Tensor  # [d]
    key: Tensor  # [d]
    value: Tensor  # [d]
    query_features: Tensor  # [p]
    key_features: Tensor  # [p]
    rate: Tensor  # []
    controls: Tensor  # [n]


@dataclass
class ReferenceMemory(Choices):
    """One memory of one sequence and head. `recall(token, chunk)` learns from a token and reads for it."""

    rule: Rule
    weights: Weights  # at the start of the open chunk
    read_at_start: bool
    norm_max: float
    window: int = 1  # c of the rule `omega`
    iterations: int = 5  # of Newton-Schulz
    floor: float = 0.0  # under the norm in Newton-Schulz
    momentum: Weights | None = None
    history: list[Token] = field(default_factory=list)
    chunk: list[Token] = field(default_factory=list)  # tokens of the open chunk

    def recall(self, token: Token, chunk: int) -> Tensor:
        """f(q_t; W) after learning from the token: [d]. Chunks have `chunk` tokens; one open for longer ends now."""
        if len(self.chunk) >= chunk:
            self.end_chunk()
        self.chunk.append(token)
        self.history.append(token)
        at_start = self.read_at_start or self.rule is Rule.muon
        weights = self.weights if at_start else subtract(self.weights, self.writes())
        if len(self.chunk) == chunk:
            self.end_chunk()
        return recall(weights, token.query, token.query_features)

    def writes(self) -> Weights:
        """Sum over the open chunk's tokens s of eta_s sum_{i = s-c+1 .. s} gamma_i grad l(W_xi; k_i, v_i)."""
        total = zeros(self.weights)
        first = len(self.history) - len(self.chunk)
        for s in range(first, len(self.history)):
            for i in range(max(s - self.window + 1, 0), s + 1):
                gamma = self.history[i].controls[0] if self.rule is Rule.omega else 1.0
                gradient = inner_gradient(self.weights, self.history[i])
                total = add(total, times(gradient, self.history[s].rate * gamma))
        return total

    def end_chunk(self) -> None:
        """The weights at the start of the next chunk."""
        update = self.writes()
        gates = torch.stack([token.controls for token in self.chunk]).mean(0)
        if self.rule in (Rule.momentum, Rule.muon):
            theta, forget = gates[0], gates[1]
            self.momentum = add(times(self.momentum or zeros(self.weights), theta), update)
            update = self.momentum
            if self.rule is Rule.muon:
                update = times(Weights(*(self.orthogonal(matrix) for matrix in update)), gates[2])
            self.weights = times(self.weights, 1 - forget)
        self.weights = bounded(subtract(self.weights, update), self.norm_max)
        self.chunk = []

    def orthogonal(self, matrix: Tensor) -> Tensor:
        """Newton-Schulz, written out for one matrix."""
        if matrix.shape[0] > matrix.shape[1]:
            return self.orthogonal(matrix.T).T
        X = matrix / (matrix.square().sum() + self.floor**2).sqrt()
        for _ in range(self.iterations):
            A = X @ X.T
            X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
        return X


def recall(weights: Weights, x: Tensor, features: Tensor) -> Tensor:
    """f(x; W): [d]."""
    return x + weights.W1 @ (F.silu(weights.W2 @ features) * (weights.W3 @ features))


def inner_gradient(weights: Weights, token: Token) -> Weights:
    """grad l(W; k, v), itself differentiable."""
    with torch.enable_grad():
        at = Weights(*(w if w.requires_grad else w.detach().requires_grad_() for w in weights))
        error = recall(at, token.key, token.key_features) - token.value
        loss = (1 + error.square().sum()).sqrt() - 1
        return Weights(*torch.autograd.grad(loss, at, create_graph=True))


def bounded(weights: Weights, limit: float) -> Weights:
    """W1 scaled back to Frobenius norm `limit sqrt(h)`, W2 and W3 together to `limit sqrt(h p / d)`."""
    width, hidden = weights.W1.shape
    down = limit * hidden**0.5
    up = down * (weights.W2.shape[1] / width) ** 0.5
    W1, both = weights.W1, torch.cat((weights.W2, weights.W3))
    W1 = W1 * down / W1.norm() if W1.norm() > down else W1
    both = both * up / both.norm() if both.norm() > up else both
    return Weights(W1, *both.chunk(2))


def zeros(weights: Weights) -> Weights:
    return Weights(*(torch.zeros_like(matrix) for matrix in weights))


def add(left: Weights, right: Weights) -> Weights:
    return Weights(*(a + b for a, b in zip(left, right, strict=True)))


def subtract(left: Weights, right: Weights) -> Weights:
    return Weights(*(a - b for a, b in zip(left, right, strict=True)))


def times(weights: Weights, factor: Tensor | float) -> Weights:
    return Weights(*(matrix * factor for matrix in weights))
