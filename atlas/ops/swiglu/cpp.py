"""SwiGLU by the kernel of `atlas/kernels/swiglu.cpp`.

Legend: N rows, D width of the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from atlas.kernels.call import Kernel, operator


class SwigluSizes(NamedTuple):
    rows: int
    width: int


def _sizes(x: Tensor) -> SwigluSizes:
    return SwigluSizes(x.shape[0], x.shape[1] // 2)


FORWARD = Kernel("atlas_swiglu_forward", lambda s: {"x": (s.rows, 2 * s.width)}, lambda s: {"out": (s.rows, s.width)})
BACKWARD = Kernel(
    "atlas_swiglu_backward",
    lambda s: {"x": (s.rows, 2 * s.width), "d_out": (s.rows, s.width)},
    lambda s: {"d_x": (s.rows, 2 * s.width)},
)
forward = operator("swiglu(Tensor x) -> Tensor", FORWARD, lambda x: (_sizes(x), (x,)))
backward = operator(
    "swiglu_backward(Tensor x, Tensor d_out) -> Tensor", BACKWARD, lambda x, d_out: (_sizes(x), (x, d_out))
)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, d_out: Tensor) -> Any:
    return backward(*ctx.saved_tensors, d_out)


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def swiglu(x: Tensor) -> Tensor:
    """[..., 2D] -> [..., D], the same as `gated_units`."""
    out: Tensor = forward(x.reshape(-1, x.shape[-1]))
    return out.view(*x.shape[:-1], x.shape[-1] // 2)
