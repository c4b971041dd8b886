"""w x / sqrt(mean(x^2) + epsilon) over the last dimension."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from atlas.kernels.call import takes
from atlas.ops.rms_norm import cpp


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """[..., D], weight [D] -> [..., D]. Epsilon is that of `torch.nn.RMSNorm`: the precision of x."""
    if x.dim() and takes(x, weight, widths=x.shape[-1:]):
        return cpp.rms_norm(x, weight)
    return F.rms_norm(x, weight.shape, weight)
