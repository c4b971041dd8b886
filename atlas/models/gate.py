"""The gate of a MAG block: one sigmoid per channel, computed from what the memory recalls.

Legend: B sequences, T tokens, D model width.

    z = m W_g + b_g,    g = sigmoid(sharpness * z),    sharpness = exp(log_sharpness), learnable
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# z starts with unit variance: more than 8 of 10 gates start below 0.1 or above 0.9.
INITIAL_SHARPNESS = 10.0


class Gating(NamedTuple):
    """The gate of a recalled m; all [B, T, D]."""

    logits: Tensor  # z
    gate: Tensor  # g
    polarisable: Tensor  # g with a gradient to the sharpness alone
    linear: Tensor  # m W_g, without the bias: finite where an infinite bias closes the gate


class Gate(nn.Module):
    """A sharp gate: its pattern of open and closed channels encodes what was recalled.

    Gates polarise by a sharper sigmoid, or by logits far from 0. The second way disables the memory: constant logits
    minimise the loss, and a constant gate does not depend on the memory (experiments/LOG.md). So the gradient of the
    polarisation loss reaches the sharpness only.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.log_sharpness = nn.Parameter(torch.tensor(log(INITIAL_SHARPNESS)))
        nn.init.normal_(self.linear.weight, std=width**-0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, recalled: Tensor) -> Gating:
        linear = F.linear(recalled, self.linear.weight)
        logits = linear + self.linear.bias
        sharpness = self.log_sharpness.exp()
        gate, polarisable = torch.sigmoid(sharpness * logits), torch.sigmoid(sharpness * logits.detach())
        return Gating(logits, gate, polarisable, linear)
