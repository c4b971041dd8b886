"""Newton-Schulz iteration: approximates the nearest matrix with orthonormal rows by matrix products alone.

    X_0 = G / ||G||_F,    X <- a X + (b A + c A^2) X,    A = X X^T

Five iterations bring singular values of at least about 1/100 of the norm into about [0.7, 1.2] (coefficients of Jordan
et al., which ATLAS cites); they do not converge to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrix: Tensor, iterations: int, floor: float = 1e-7) -> Tensor:
    """Orthogonalise a batch of matrices [..., m, n]; tall ones are transposed, so that the products stay small.

    `floor` is added to the norm in quadrature: a matrix far below it gives almost zero, and the gradient stays below
    about `3.4445 ** iterations / floor`. Without it the gradient of a vanishing matrix is unbounded.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    X = (matrix.mT if tall else matrix).flatten(0, -3)
    X = X * torch.rsqrt(X.square().sum((-2, -1), keepdim=True) + floor * floor)
    for _ in range(iterations):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    X = X.mT if tall else X
    return X.reshape(matrix.shape)
