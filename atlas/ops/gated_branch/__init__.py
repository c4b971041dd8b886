"""The branch of a MAG block behind its gate.

    g = sigmoid(s (l + b)),     out = a g,  or (a + l) g with `adds`

Legend: a attended, l = m W_g, b bias, s sharpness; [..., D], b [D], s a number.
"""

from __future__ import annotations

from math import inf

from torch import Tensor

from atlas.kernels.call import takes
from atlas.ops.gated_branch import cpp
from atlas.ops.gated_branch import torch as plain


def gated_branch(
    attended: Tensor, linear: Tensor, bias: Tensor, sharpness: Tensor, *, adds: bool, sharpness_max: float = inf
) -> tuple[Tensor, Tensor]:
    """The branch [..., D], and g [..., D] whose own gradient reaches the sharpness alone, below `sharpness_max`."""
    fits = attended.shape == linear.shape and linear.dim() and bias.shape == linear.shape[-1:] and not sharpness.dim()
    if fits and takes(attended, linear, bias, sharpness, widths=linear.shape[-1:]):
        return cpp.gated_branch(attended, linear, bias, sharpness, adds, sharpness_max)
    return plain.gated_branch(attended, linear, bias, sharpness, adds, sharpness_max)
