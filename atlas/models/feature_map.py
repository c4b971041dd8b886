"""phi: from keys and queries to the features that the memory network reads (docs/memory.md section 2).

Legend: N = B * H rows, T tokens, H heads, d head width, w feature width before the polynomial, p features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atlas.config import MemoryConfig
from atlas.ops.features import feature_count, polynomial_features


class FeatureMap(nn.Module):
    """phi(x) = poly(x P): a learnable P per head [d, w] keeps the state affordable at degree 2; w = d needs none.

    P starts with orthogonal columns of norm sqrt(d / w): a random unit vector keeps its norm, about.
    """

    def __init__(self, heads: int, head_width: int, config: MemoryConfig) -> None:
        super().__init__()
        self.degree = config.degree
        width = config.feature_width or head_width
        self.count = feature_count(width, config.degree)
        self.projection = None
        if config.feature_width:
            start = torch.stack([nn.init.orthogonal_(torch.empty(head_width, width)) for _ in range(heads)])
            self.projection = nn.Parameter(start * max(head_width / width, 1) ** 0.5)  # [H, d, w]

    def forward(self, x: Tensor) -> Tensor:
        """Keys or queries [N, T, d] -> [N, T, p]."""
        if self.projection is not None:
            heads = self.projection.shape[0]
            x = (x.unflatten(0, (-1, heads)) @ self.projection).flatten(0, 1)
        return polynomial_features(x, self.degree)
