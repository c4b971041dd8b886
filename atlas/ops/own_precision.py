"""Autocast, and leaving it for operations whose precision is that of their tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def products_in(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Autocast to the precision of matrix products; float32 needs none."""
    return torch.autocast(device.type, precision, enabled=precision is not torch.float32)


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on where the tensor lies."""
    # `torch.amp.is_autocast_available` would be the question, but PyTorch 2.11 cannot trace it.
    return tensor.device.type != "meta" and torch.is_autocast_enabled(tensor.device.type)


def own_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """No autocast inside, where the tensor lies."""
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()
