"""Linear layers that are made of several: one matrix product, and several matrices for an optimiser of matrices."""

from __future__ import annotations

from torch import nn


class StackedLinear(nn.Linear):
    """`parts` layers of `width` inputs and `outputs` outputs each, without bias; weight [parts * outputs, width]."""

    def __init__(self, width: int, outputs: int, parts: int) -> None:
        super().__init__(width, parts * outputs, bias=False)
        self.parts = parts
