"""phi: from keys and queries to the features that the memory network reads (docs/memory.md section 2).

Legend: N = B * H rows, T tokens, H heads, d head width, d' width before the features, p features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atlas.config import MemoryConfig
from atlas.ops.features import feature_counts, polynomial_features


class FeatureMap(nn.Module):
    """phi(x) = coef * features(F^T x). A learnable F per head [d, d'] keeps the state small at degree 2.

    Without F, d' = d. F starts with orthogonal columns of norm sqrt(d / d'), so that a random unit vector keeps its
    norm on average. coef has a learnable number per head and degree, 1 before training (docs/memory.md section 2).
    """

    def __init__(self, heads: int, head_width: int, config: MemoryConfig) -> None:
        super().__init__()
        self.degree = config.degree
        width = config.feature_width or head_width
        self.counts = feature_counts(width, config.degree)
        self.count = sum(self.counts)
        self.projection = None
        if config.feature_width:
            start = torch.stack([nn.init.orthogonal_(torch.empty(head_width, width)) for _ in range(heads)])
            self.projection = nn.Parameter(start * max(head_width / width, 1) ** 0.5)  # [H, d, d']
        learnable = config.learnable_coefficients
        self.coefficients = nn.Parameter(torch.ones(heads, len(self.counts))) if learnable else None

    def forward(self, x: Tensor) -> Tensor:
        """Keys or queries [N, T, d] -> [N, T, p]."""
        if self.projection is not None:
            heads = self.projection.shape[0]
            x = (x.unflatten(0, (-1, heads)) @ self.projection).flatten(0, 1)
        features = polynomial_features(x, self.degree)
        if self.coefficients is None:
            return features
        heads = self.coefficients.shape[0]
        each = torch.cat([c.expand(-1, n) for c, n in zip(self.coefficients.split(1, 1), self.counts, strict=True)], 1)
        scaled: Tensor = features.unflatten(0, (-1, heads)) * each.unsqueeze(1)
        return scaled.flatten(0, 1)
