"""What the compiled kernels have in common: which tensors they take, and how they see them.

Legend: N rows, T tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from atlas.kernels.library import library
from atlas.kernels.signatures import Rows

GRANULE = 8  # widths are multiples of it: the narrowest vector of the kernels


def kernels_for(tensors: Sequence[Tensor], widths: Sequence[int]) -> ctypes.CDLL | None:
    """The compiled library, if there is one and it takes such tensors: float32 on a CPU, even widths."""
    if any(part.device.type != "cpu" or part.dtype != torch.float32 for part in tensors):
        return None
    return None if any(width % GRANULE for width in widths) else library()


def dense(tensor: Tensor) -> Tensor:
    """A tensor [..., width] whose last dimension is contiguous; the others may lie anyhow."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def rows(tensor: Tensor) -> Rows:
    """[N, T, width], dense, or [N, T]"""
    return Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def addresses(*tensors: Tensor | None) -> list[int | None]:
    """Where contiguous tensors lie; None for one that is not there."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
