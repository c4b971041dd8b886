"""RMSNorm by the kernel of `atlas/kernels/norm.cpp`.

Legend: N rows, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from atlas.kernels.call import Kernel, Shapes, operator

EPSILON = torch.finfo(torch.float32).eps
BLOCK_ROWS = 64  # whose part of the weight gradient is summed by one thread


class NormSizes(NamedTuple):
    rows: int
    width: int
    block: int
    epsilon: float


def _sizes(x: Tensor) -> NormSizes:
    return NormSizes(x.shape[0], x.shape[1], BLOCK_ROWS, EPSILON)


def _inputs(s: NormSizes) -> Shapes:
    return {"x": (s.rows, s.width), "weight": (s.width,)}


FORWARD = Kernel("atlas_norm_forward", _inputs, lambda s: {"out": (s.rows, s.width), "inverse": (s.rows,)})
BACKWARD = Kernel(
    "atlas_norm_backward",
    lambda s: {**_inputs(s), "inverse": (s.rows,), "d_out": (s.rows, s.width)},
    lambda s: {"d_x": (s.rows, s.width), "d_weight": (-(-s.rows // s.block), s.width)},
)
forward = operator(
    "rms_norm(Tensor x, Tensor weight) -> (Tensor, Tensor)", FORWARD, lambda x, weight: (_sizes(x), (x, weight))
)
backward = operator(
    "rms_norm_backward(Tensor x, Tensor weight, Tensor inverse, Tensor d_out) -> (Tensor, Tensor)",
    BACKWARD,
    lambda x, *others: (_sizes(x), (x, *others)),
)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out: Tensor, _: None) -> tuple[Tensor, Tensor]:
    d_x, d_weight = backward(*ctx.saved_tensors, d_out)
    return d_x, d_weight.sum(0)


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """[..., D], [D] -> [..., D], the same as `torch.nn.functional.rms_norm`."""
    out: Tensor = forward(x.reshape(-1, x.shape[-1]), weight)[0]
    return out.view(x.shape)
