"""Polynomial features of keys and queries (ATLAS section 3.1): all monomials up to a degree, the constant included.

    phi_p(x) = [x^beta, |beta| <= p],   dimension C(d + p, p)          (2145 for d = 64, p = 2)

Monomials are scaled so that phi(x) . phi(y) = 1 + x.y + (x.y)^2 / 2, the truncated exponential kernel whose learnable
coefficients the paper initialises with 1/i!.
"""

from __future__ import annotations

from math import comb, sqrt

import torch
from torch import Tensor

DEGREES = (1, 2)


def feature_count(width: int, degree: int) -> int:
    """Dimension of `polynomial_features`; degree 1 is the identity, without a constant, and keeps the width."""
    return width if degree == 1 else comb(width + degree, degree)


def feature_norm(degree: int) -> float:
    """||phi(x)|| of a unit vector x."""
    return 1.0 if degree == 1 else sqrt(2.5)


def polynomial_features(x: Tensor, degree: int) -> Tensor:
    """phi(x) over the last dimension: [..., d] -> [..., C(d + 2, 2)] for degree 2, x itself for degree 1."""
    if degree not in DEGREES:
        raise ValueError(f"degree={degree}: must be one of {DEGREES}")
    if degree == 1:
        return x
    width = x.shape[-1]
    row, column = torch.triu_indices(width, width, device=x.device).unbind()
    # (x.y)^2 / 2 = sum_i x_i^2 y_i^2 / 2 + sum_{i<j} x_i x_j y_i y_j
    scale = torch.ones(len(row), dtype=x.dtype, device=x.device).masked_fill(row == column, 1 / sqrt(2))
    return torch.cat((torch.ones_like(x[..., :1]), x, x[..., row] * x[..., column] * scale), dim=-1)


def homogeneous_features(x: Tensor, degree: int) -> Tensor:
    """The monomials of exactly one degree, scaled so that phi(x) . phi(y) = (x.y)^degree."""
    if degree == 1:
        return x
    quadratic = polynomial_features(x, degree)[..., 1 + x.shape[-1] :]
    return quadratic * sqrt(2)
