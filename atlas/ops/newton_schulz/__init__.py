"""Newton-Schulz iteration: approximates the nearest matrix with orthonormal rows or columns by matrix products alone.

    Y = S / sqrt(||S||_F^2 + floor^2),    then for every iteration
    Y <- Y P    with    A = Y^T Y,    P = a I + b A + c A^2

Five iterations bring singular values of at least about 1/100 of the norm into about [0.7, 1.2] (coefficients of Jordan
et al., which ATLAS cites); they do not converge to 1. The gradient of an iteration, G that of Y P:

    B = (Y^T G + G^T Y) / 2,    dA = b B + c (B A + A B),    dY = G P + 2 Y dA

Legend: N matrices of m rows and n <= m columns; a wide matrix is transposed, so that A stays small.
"""

from __future__ import annotations

from torch import Tensor

from atlas.kernels.call import takes
from atlas.ops.newton_schulz import cpp
from atlas.ops.newton_schulz import torch as plain
from atlas.ops.newton_schulz.torch import COEFFICIENTS

__all__ = ["COEFFICIENTS", "newton_schulz"]


def newton_schulz(matrix: Tensor, iterations: int, floor: float = 1e-7) -> Tensor:
    """Orthogonalise a batch of matrices [..., m, n] in `iterations` >= 1; the shape stays.

    `floor` is added to the norm in quadrature: a matrix far below it gives almost zero, and the gradient stays below
    about `3.4445 ** iterations / floor`. Without it the gradient of a vanishing matrix is unbounded.
    """
    wide = matrix.shape[-2] < matrix.shape[-1]
    tall = (matrix.mT if wide else matrix).flatten(0, -3)
    orthogonal = cpp.newton_schulz if takes(tall, widths=tall.shape[2:]) else plain.newton_schulz
    out = orthogonal(tall, iterations, floor)
    return (out.mT if wide else out).reshape(matrix.shape)
