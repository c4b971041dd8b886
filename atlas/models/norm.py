"""RMSNorm of the model: `torch.nn.RMSNorm` by `atlas.ops.rms_norm`."""

from __future__ import annotations

from torch import Tensor, nn

from atlas.ops.rms_norm import rms_norm


class RMSNorm(nn.RMSNorm):
    def __init__(self, width: int) -> None:
        super().__init__(width)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)
