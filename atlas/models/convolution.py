"""Causal depthwise convolution of width 4: it binds a token to the tokens before it.

Legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atlas.ops.causal_convolution import causal_convolution

CONVOLUTION = 4  # tokens, the current one included


class CausalConvolution(nn.Module):
    """y_t = sum_lag weight[lag] * x_{t - lag}, one weight per lag and channel, over the channels of q, k and v.

    Start: queries weigh lags 0-2 and keys lags 1-3, with the same random signs; values take lag 0. Where the
    projections of q and k start equal, the key of a token equals the query of the token before it, so that from the
    first step a query finds what followed the same three tokens. The signs make the order of the three matter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        signs = torch.randint(0, 2, (CONVOLUTION - 1, width)) * 2.0 - 1
        context, none = signs * (CONVOLUTION - 1) ** -0.5, torch.zeros(1, width)
        value = torch.cat((torch.ones(1, width), none.expand(CONVOLUTION - 1, -1)))
        start = torch.cat((torch.cat((context, none)), torch.cat((none, context)), value), dim=1)
        self.weight = nn.Parameter(start)  # [4, 3D]

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3 + T, 3D], with the three inputs before the stretch first -> [B, T, 3D]."""
        return causal_convolution(x, self.weight)
