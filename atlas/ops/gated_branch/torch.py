"""The gated branch by PyTorch's operations."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_branch(
    attended: Tensor, linear: Tensor, bias: Tensor, sharpness: Tensor, adds: bool, sharpness_max: float
) -> tuple[Tensor, Tensor]:
    logits = linear + bias
    limited = torch.where(sharpness < sharpness_max, sharpness, sharpness.detach())
    gate, polarisable = torch.sigmoid(sharpness * logits), torch.sigmoid(limited * logits.detach())
    return (attended + linear if adds else attended) * gate, polarisable
