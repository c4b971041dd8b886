"""Polynomial features of keys and queries (ATLAS section 3.1): all monomials up to a degree, the constant included.

    phi(x) = every monomial of x of degree i <= degree,   p = binomial(d + degree, degree)

Monomials are scaled so that phi(x) . phi(y) = sum_{i <= degree} (x.y)^i / i!, the truncated exponential kernel: the
start of the paper's learnable coefficients.

Legend: d width, p features (2145 for d = 64 and degree 2).
"""

from __future__ import annotations

from functools import reduce
from math import comb, factorial, sqrt

import torch
from torch import Tensor

DEGREES = (1, 2, 3)


def feature_counts(width: int, degree: int) -> list[int]:
    """Features of each degree, from the lowest; `degree=1` is the identity, without a constant, and keeps the width."""
    return [width] if degree == 1 else [comb(width + i - 1, i) for i in range(degree + 1)]


def feature_norm(degree: int) -> float:
    """||phi(x)|| of a unit vector x."""
    return 1.0 if degree == 1 else sqrt(sum(1 / factorial(i) for i in range(degree + 1)))


def polynomial_features(x: Tensor, degree: int) -> Tensor:
    """phi(x) over the last dimension: [..., d] -> [..., p], x itself for degree 1."""
    if degree not in DEGREES:
        raise ValueError(f"degree={degree}: must be one of {DEGREES}")
    if degree == 1:
        return x
    return torch.cat((torch.ones_like(x[..., :1]), *(_monomials(x, i) for i in range(1, degree + 1))), dim=-1)


def homogeneous_features(x: Tensor, degree: int) -> Tensor:
    """The monomials of exactly one degree, scaled so that phi(x) . phi(y) = (x.y)^degree."""
    return x if degree == 1 else _monomials(x, degree) * sqrt(factorial(degree))


def _monomials(x: Tensor, degree: int) -> Tensor:
    """Those of exactly one degree, scaled so that phi(x) . phi(y) = (x.y)^degree / degree!."""
    if degree == 1:
        return x
    # Indices of the factors of each monomial in order: [monomials, degree].
    factors = torch.combinations(torch.arange(x.shape[-1]), degree, with_replacement=True)
    # The square of a monomial's scale is 1 / the product of its exponents' factorials.
    run = square = torch.ones(len(factors), dtype=torch.float64)
    for before, index in zip(factors.T, factors.T[1:], strict=False):
        run = torch.where(index == before, run + 1, 1.0)
        square = square / run
    product = reduce(torch.mul, (x[..., index] for index in factors.T.to(x.device)))
    return product * square.sqrt().to(x)
