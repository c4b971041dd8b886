"""Slow reference: one row, one token at a time, inner gradients by autograd at the weights of the equations.

It shares no code with the fast forms. One set of equations covers all rules: a gate that a rule does not have keeps its
neutral value. Matrices are those of docs/memory.md section 4:

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
class ReferenceMemory:
    """One memory of one sequence and head. `recall(token, chunk)` learns from a token and reads for it."""

    weights: Weights  # at the start of the open chunk
    read_at_start: bool
    norm_max: float
    gates: tuple[str, ...] = ()  # names of a token's controls: theta, forget, rho, gamma, gamma of lag 0, ...
    window: int = 1  # c, tokens
    iterations: int | None = None  # of Newton-Schulz; None: updates are not orthogonalised
    floor: float = 0.0  # under the norm in Newton-Schulz
    curvature_max: float = 0.0  # 0: a chunk's writes are not scaled down
    curvature_max_local: float = 0.0  # 0: a token's writes are not scaled down
    momentum: Weights | None = None
    history: list[Token] = field(default_factory=list)
    chunk: list[Token] = field(default_factory=list)  # tokens of the open chunk
    asked: list[Token] = field(default_factory=list)  # the same with the rates before they are scaled down

    def recall(self, token: Token, chunk: int) -> Tensor:
        """f(q_t; W) after learning from the token: [d]. Chunks have `chunk` tokens; one open for longer ends now."""
        if len(self.chunk) >= chunk:
            self.end_chunk()
        self.asked.append(token)
        if self.curvature_max_local:
            token = token._replace(rate=token.rate * self.damping_of_token())
        self.chunk.append(token)
        self.history.append(token)
        at_start = self.read_at_start or self.iterations is not None
        weights = self.weights if at_start else subtract(self.weights, self.writes())
        if len(self.chunk) == chunk:
            self.end_chunk()
        if chunk == 1 and not self.read_at_start and "forget" in self.gates:
            weights = self.weights  # after the token's own update
        return recall(weights, token.query, token.query_features)

    def writes(self) -> Weights:
        """Sum over the open chunk's tokens s of eta_s sum_{i = s-c+1 .. s} gamma grad l(W_xi; k_i, v_i).

        gamma is the gate of token i, or of the pair (s, i).
        """
        total = zeros(self.weights)
        first = len(self.history) - len(self.chunk)
        for s in range(first, len(self.history)):
            for i in range(max(s - self.window + 1, 0), s + 1):
                gradient = inner_gradient(self.weights, self.history[i])
                gamma = self.gate(self.history[i], "gamma", 1.0) * self.gate(
                    self.history[s], f"gamma of lag {s - i}", 1.0
                )
                total = add(total, times(gradient, self.history[s].rate * gamma))
        return total

    def gate(self, token: Token, name: str, otherwise: float) -> Tensor | float:
        return token.controls[self.gates.index(name)] if name in self.gates else otherwise

    def end_chunk(self) -> None:
        """The weights at the start of the next chunk."""
        update = self.writes()
        if self.curvature_max:
            update = times(update, self.damping())
        mean = token_mean(self.chunk)
        update = self.momentum = add(times(self.momentum or zeros(self.weights), self.gate(mean, "theta", 0.0)), update)
        if self.iterations is not None:
            update = Weights(*(self.orthogonal(matrix, self.iterations) for matrix in update))
        kept = times(self.weights, 1 - self.gate(mean, "forget", 0.0))
        self.weights = bounded(subtract(kept, times(update, self.gate(mean, "rho", 1.0))), self.norm_max)
        self.chunk, self.asked = [], []

    def damping(self) -> Tensor:
        """min(1, maximum / ||sum eta k k^T||_F)."""
        curvature = torch.stack([token.rate * torch.outer(token.key, token.key) for token in self.chunk]).sum(0)
        share: Tensor = self.curvature_max / curvature.norm()
        return share.clamp(max=1)

    def damping_of_token(self) -> Tensor:
        """min(1, (maximum / 2 / sum eta (k . k_t)^2)^2) of the newest token t."""
        key = self.asked[-1].key
        along = torch.stack([token.rate * (token.key @ key) ** 2 for token in self.asked]).sum()
        return (self.curvature_max_local / 2 / along).clamp(max=1) ** 2

    def orthogonal(self, matrix: Tensor, iterations: int) -> Tensor:
        """Newton-Schulz, written out for one matrix."""
        if matrix.shape[0] > matrix.shape[1]:
            return self.orthogonal(matrix.T, iterations).T
        X = matrix / (matrix.square().sum() + self.floor**2).sqrt()
        for _ in range(iterations):
            A = X @ X.T
            X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
        return X


def token_mean(tokens: list[Token]) -> Token:
    """Every field, its mean over the tokens."""
    return Token(*(torch.stack(values).mean(0) for values in zip(*tokens, strict=True)))


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
