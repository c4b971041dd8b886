"""Mixed queries by PyTorch's operations."""

from __future__ import annotations

from torch import Tensor

from atlas.ops.unit_rows import unit_rows


def mixed_queries(query: Tensor, projected: Tensor, mix: Tensor) -> Tensor:
    by_head = (-1, mix.shape[0])
    mixed = query.unflatten(0, by_head) + mix[:, None, None] * unit_rows(projected).unflatten(0, by_head)
    return unit_rows(mixed.flatten(0, 1))
