"""Persistent memory: learnable keys and values that every sequence starts from (Titans section 3.2).

Legend: H heads, P persistent keys, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PersistentMemory(nn.Module):
    """Learnable key-value pairs: attention sees them as a prefix, the Q-K projection starts from their keys.

    The keys start as a tight frame (rows of orthogonal matrices, unit norm). If P is a multiple of d, `m_persistent`
    starts as P/d times the identity, and a projected query starts as the query itself.
    """

    def __init__(self, heads: int, keys: int, head_width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.stack([_tight_frame(keys, head_width) for _ in range(heads)]))  # [H, P, d]
        self.values = nn.Parameter(torch.randn(heads, keys, head_width) * head_width**-0.5)  # [H, P, d]

    @property
    def m_persistent(self) -> Tensor:
        """sum_p k_p k_p^T per head: [H, d, d]."""
        return self.keys.mT @ self.keys

    @property
    def norm_persistent(self) -> Tensor:
        """sum_p ||k_p||^2 per head: [H]."""
        return self.keys.square().sum((-2, -1))

    @property
    def m_persistent_per_key(self) -> Tensor:
        """sum_p k_p k_p^T / ||k_p||^2 per head: [H, d, d], for the normalisation `per_key` (TNT Eq 7)."""
        unit = nn.functional.normalize(self.keys, dim=-1)
        return unit.mT @ unit


def _tight_frame(keys: int, width: int) -> Tensor:
    """`keys` unit vectors of `width` components, orthogonal in blocks of `width`: [P, d]."""
    blocks = [nn.init.orthogonal_(torch.empty(width, width)) for _ in range(-(-keys // width))]
    return torch.cat(blocks)[:keys]
