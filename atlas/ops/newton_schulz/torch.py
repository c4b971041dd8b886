"""Newton-Schulz iteration by PyTorch's operations."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrix: Tensor, iterations: int, floor: float) -> Tensor:
    """[N, m, n] -> [N, m, n]"""
    a, b, c = COEFFICIENTS
    Y = matrix * torch.rsqrt(matrix.square().sum((-2, -1), keepdim=True) + floor * floor)
    for _ in range(iterations):
        gram = Y.mT @ Y
        Y = torch.baddbmm(Y, Y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), beta=a)
    return Y
