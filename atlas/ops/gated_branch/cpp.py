"""The gated branch by the kernel of `atlas/kernels/gate.cpp`: one pass forward and one backward.

Legend: N rows, D width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from atlas.kernels.call import Kernel, Shapes, operator

BLOCK_ROWS = 64  # whose part of the gradients of bias and sharpness is summed by one thread


class GateSizes(NamedTuple):
    rows: int
    width: int
    block: int
    adds: int
    sharpness_max: float


def _sizes(attended: Tensor, adds: bool, sharpness_max: float) -> GateSizes:
    return GateSizes(attended.shape[0], attended.shape[1], BLOCK_ROWS, int(adds), sharpness_max)


def _rows(s: GateSizes, *names: str) -> Shapes:
    return dict.fromkeys(names, (s.rows, s.width))


def _inputs(s: GateSizes) -> Shapes:
    return {**_rows(s, "attended", "linear"), "bias": (s.width,), "sharpness": ()}


def _gradients_of(s: GateSizes) -> Shapes:
    blocks = -(-s.rows // s.block)
    return {**_rows(s, "d_attended", "d_linear"), "d_bias": (blocks, s.width), "d_sharpness": (blocks,)}


FORWARD = Kernel("atlas_gate_forward", _inputs, lambda s: _rows(s, "out", "gate"))
BACKWARD = Kernel(
    "atlas_gate_backward",
    lambda s: {**_inputs(s), **_rows(s, "gate", "d_out", "d_gate")},
    _gradients_of,
    optional=frozenset({"d_gate"}),
)
forward = operator(
    "gated_branch(Tensor attended, Tensor linear, Tensor bias, Tensor sharpness, bool adds, float sharpness_max) "
    "-> (Tensor, Tensor)",
    FORWARD,
    lambda attended, *others: (_sizes(attended, *others[-2:]), (attended, *others[:-2])),
)
backward = operator(
    "gated_branch_backward(Tensor attended, Tensor linear, Tensor bias, Tensor sharpness, Tensor gate, Tensor d_out, "
    "Tensor? d_gate, bool adds, float sharpness_max) -> (Tensor, Tensor, Tensor, Tensor)",
    BACKWARD,
    lambda attended, *others: (_sizes(attended, *others[-2:]), (attended, *others[:-2])),
)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.settings = inputs[-2:]
    ctx.save_for_backward(*inputs[:-2], output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out: Tensor | None, d_gate: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    d_out = saved[0].new_zeros(saved[0].shape) if d_out is None else d_out
    d_attended, d_linear, d_bias, d_sharpness = backward(*saved, d_out, d_gate, *ctx.settings)
    return d_attended, d_linear, d_bias.sum(0), d_sharpness.sum(0), None, None


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def gated_branch(
    attended: Tensor, linear: Tensor, bias: Tensor, sharpness: Tensor, adds: bool, sharpness_max: float
) -> tuple[Tensor, Tensor]:
    width = linear.shape[-1]
    out, gate = forward(attended.reshape(-1, width), linear.reshape(-1, width), bias, sharpness, adds, sharpness_max)
    return out.view(linear.shape), gate.view(linear.shape)
