"""The gate of a MAG block: one sigmoid per channel, computed from what the memory recalls.

Legend: B sequences, T tokens, D model width, a attended, m recalled.

    z = m W_g + b_g,    g = sigmoid(sharpness * z),    sharpness = exp(log_sharpness), learnable
"""

from __future__ import annotations

from math import inf, log
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas.config import Fusion
from atlas.config.model import GATE_SHARPNESS
from atlas.ops.gated_branch import gated_branch


class GateLinear(nn.Linear):
    """m W_g. The gate adds the bias itself. It is called as a module, so that hooks and adapters such as LoRA work."""

    def forward(self, recalled: Tensor) -> Tensor:
        return F.linear(recalled, self.weight)


class Gate(nn.Module):
    """A sharp gate: its pattern of open and closed channels encodes what was recalled.

    Gates polarise by a sharper sigmoid, or by logits far from 0. The second way disables the memory: constant logits
    minimise the loss, and a constant gate does not depend on the memory (experiments/LOG.md). So the gradient of the
    polarisation loss reaches the sharpness only, and only below `sharpness_max` (0: always): it always asks for more,
    and a step function has no gradient but where it jumps.
    """

    def __init__(self, width: int, fusion: Fusion, sharpness_max: float = 0.0) -> None:
        super().__init__()
        self.fusion, self.sharpness_max = fusion, sharpness_max or inf
        self.linear = GateLinear(width, width)
        self.log_sharpness = nn.Parameter(torch.tensor(log(GATE_SHARPNESS)))
        nn.init.normal_(self.linear.weight, std=width**-0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, attended: Tensor, recalled: Tensor) -> tuple[Tensor, Tensor | None]:
        """a and m [B, T, D] -> their fusion [B, T, D], and g [B, T, D] with a gradient to the sharpness alone.

        `additive` has no gate. Its sharpness is unused: models of all fusions have the same parameters.
        """
        # Without the bias: finite where an infinite bias closes the gate. The sharpness then has a gradient of NaN.
        linear = self.linear(recalled)
        sharpness = self.log_sharpness.view(()).exp()  # in slices it has one element
        match self.fusion:
            case Fusion.additive:
                return attended + (linear + self.linear.bias), None
            case Fusion.gated_sum:
                adds = True
            case Fusion.multiplicative:
                adds = False
            case unknown:
                assert_never(unknown)
        limit = self.sharpness_max
        return gated_branch(attended, linear, self.linear.bias, sharpness, adds=adds, sharpness_max=limit)
