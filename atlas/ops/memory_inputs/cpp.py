"""Queries, keys and values of a memory's rows by the kernel of `atlas/kernels/inputs.cpp`."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from atlas.kernels.call import Kernel, Shapes, operator


class InputSizes(NamedTuple):
    batch: int
    heads: int
    tokens: int
    width: int
    lags: int


def _sizes(x: Tensor, weight: Tensor, heads: int) -> InputSizes:
    lags = weight.shape[0]
    return InputSizes(x.shape[0], heads, x.shape[1] - lags + 1, x.shape[2] // (3 * heads), lags)


def _inputs(s: InputSizes) -> Shapes:
    channels = 3 * s.heads * s.width
    return {"x": (s.batch, s.lags - 1 + s.tokens, channels), "weight": (s.lags, channels)}


def _parts(s: InputSizes, *names: str) -> Shapes:
    return dict.fromkeys(names, (s.batch * s.heads, s.tokens, s.width))


def _inverse(s: InputSizes) -> Shapes:
    return {"inverse": (2, s.batch * s.heads, s.tokens)}


FORWARD = Kernel("atlas_inputs_forward", _inputs, lambda s: {**_parts(s, "query", "key", "value"), **_inverse(s)})
BACKWARD = Kernel(
    "atlas_inputs_backward",
    lambda s: {
        **_inputs(s),
        **_parts(s, "query", "key"),
        **_inverse(s),
        **_parts(s, "d_query", "d_key", "d_value"),
    },
    lambda s: {"d_x": _inputs(s)["x"], "d_weight": (s.batch, s.lags, 3 * s.heads * s.width)},
    strided=frozenset({"d_query", "d_key", "d_value"}),
    zeroed=True,
)
forward = operator(
    "memory_inputs(Tensor x, Tensor weight, int heads) -> (Tensor, Tensor, Tensor, Tensor)",
    FORWARD,
    lambda x, weight, heads: (_sizes(x, weight, heads), (x, weight)),
)
backward = operator(
    "memory_inputs_backward(Tensor x, Tensor weight, Tensor query, Tensor key, Tensor inverse, Tensor d_query, "
    "Tensor d_key, Tensor d_value, int heads) -> (Tensor, Tensor)",
    BACKWARD,
    lambda x, weight, *others: (_sizes(x, weight, others[-1]), (x, weight, *others[:-1])),
)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: tuple[Tensor, ...]) -> None:
    x, weight, ctx.heads = inputs
    query, key, _, inverse = output
    ctx.save_for_backward(x, weight, query, key, inverse)
    ctx.mark_non_differentiable(inverse)


def _gradients(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, None]:
    d_x, d_weight = backward(*ctx.saved_tensors, *given[:3], ctx.heads)
    return d_x, d_weight.sum(0), None


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def memory_inputs(x: Tensor, weight: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, _ = forward(x, weight, heads)
    return query, key, value
