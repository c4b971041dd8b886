"""Queries, keys and values of a memory's rows by PyTorch's operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.ops.causal_convolution import causal_convolution
from atlas.ops.unit_rows import unit_rows


def memory_inputs(recent: Tensor, x: Tensor, weight: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = rows_of_heads(causal_convolution(torch.cat((recent, x), dim=1), weight), heads)
    return unit_rows(query), unit_rows(key), F.silu(value)


def rows_of_heads(mixed: Tensor, heads: int) -> Tensor:
    """[B, T, 3D] -> [3, N, T, d]"""
    rows: Tensor = mixed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
    return rows
