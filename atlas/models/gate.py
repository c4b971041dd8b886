"""The gate of a MAG block: one sigmoid per channel, computed from what the memory recalls.

Legend: B sequences, T tokens, D model width.

    z = m W_g + b_g,    g = sigmoid(s * z),    s = exp(log_sharpness), learnable
"""

from __future__ import annotations

from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# z starts with unit variance, so that more than 8 gates of 10 start below 0.1 or above 0.9.
INITIAL_SHARPNESS = 10.0


class Gating(NamedTuple):
    """Of a recalled m; all [B, T, D]."""

    logits: Tensor  # z
    gate: Tensor  # g
    polarisable: Tensor  # g with a gradient to the sharpness alone
    linear: Tensor  # m W_g, without the bias: finite where an infinite bias closes the gate


class Gate(nn.Module):
    """Sharp from the start: its pattern of open and closed channels is a code of what was recalled.

    Polarisation can be had in two ways: a sharper sigmoid, or logits pushed away from 0. The second closes the memory:
    the cheapest push is a constant one, and a constant gate tells nothing of the memory (experiments/LOG.md). So the
    gates handed to the polarisation loss let its gradient reach the sharpness and nothing else.
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
