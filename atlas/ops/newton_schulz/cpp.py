"""Newton-Schulz iteration by the kernel of `atlas/kernels/orthogonal.cpp`.

Legend: N matrices of m rows and n columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from atlas.kernels.call import Kernel, Shapes, floats, operator


class OrthogonalSizes(NamedTuple):
    rows: int  # N
    tall: int  # m
    width: int  # n
    iterations: int
    floor: float


def _matrices(s: OrthogonalSizes, name: str) -> Shapes:
    return {name: (s.rows, s.tall, s.width)}


def _saved(s: OrthogonalSizes) -> Shapes:
    return {"saved": (s.rows, floats("atlas_orthogonal_floats", s))}


FORWARD = Kernel(
    "atlas_orthogonal_forward", lambda s: _matrices(s, "matrix"), lambda s: {**_matrices(s, "out"), **_saved(s)}
)
BACKWARD = Kernel(
    "atlas_orthogonal_backward",
    lambda s: {**_saved(s), **_matrices(s, "d_out")},
    lambda s: _matrices(s, "d_matrix"),
)
forward = operator(
    "newton_schulz(Tensor matrix, int iterations, float floor) -> (Tensor, Tensor)",
    FORWARD,
    lambda matrix, *settings: (OrthogonalSizes(*matrix.shape, *settings), (matrix,)),
)
backward = operator(
    "newton_schulz_backward(Tensor saved, Tensor d_out, int iterations, float floor) -> Tensor",
    BACKWARD,
    lambda saved, d_out, *settings: (OrthogonalSizes(*d_out.shape, *settings), (saved, d_out)),
)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, int, float], output: tuple[Tensor, Tensor]) -> None:
    _, *ctx.settings = inputs
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for `saved` would take as long as a product


def _gradients(ctx: Any, d_out: Tensor, _: Tensor) -> Any:
    return backward(*ctx.saved_tensors, d_out, *ctx.settings), None, None


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def newton_schulz(matrix: Tensor, iterations: int, floor: float) -> Tensor:
    """[N, m, n] -> [N, m, n]"""
    out: Tensor = forward(matrix, iterations, floor)[0]
    return out
