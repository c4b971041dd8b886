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
    batch, tokens, channels = x.shape
    return InputSizes(batch, heads, tokens, channels // (3 * heads), weight.shape[0])


def _inputs(s: InputSizes) -> Shapes:
    channels = 3 * s.heads * s.width
    recent, x = (s.batch, s.lags - 1, channels), (s.batch, s.tokens, channels)
    return {"recent": recent, "x": x, "weight": (s.lags, channels)}


def _gradients_of(s: InputSizes) -> Shapes:
    given = _inputs(s)
    return {"d_recent": given["recent"], "d_x": given["x"], "d_weight": (s.batch, s.lags, 3 * s.heads * s.width)}


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
    _gradients_of,
    strided=frozenset({"d_query", "d_key", "d_value"}),
)
forward = operator(
    "memory_inputs(Tensor recent, Tensor x, Tensor weight, int heads) -> (Tensor, Tensor, Tensor, Tensor)",
    FORWARD,
    lambda recent, x, weight, heads: (_sizes(x, weight, heads), (recent, x, weight)),
)
backward = operator(
    "memory_inputs_backward(Tensor recent, Tensor x, Tensor weight, Tensor query, Tensor key, Tensor inverse, "
    "Tensor d_query, Tensor d_key, Tensor d_value, int heads) -> (Tensor, Tensor, Tensor)",
    BACKWARD,
    lambda recent, x, weight, *others: (_sizes(x, weight, others[-1]), (recent, x, weight, *others[:-1])),
)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.heads = inputs
    query, key, _, inverse = output
    ctx.save_for_backward(*tensors, query, key, inverse)
    ctx.mark_non_differentiable(inverse)


def _gradients(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    d_recent, d_x, d_weight = backward(*ctx.saved_tensors, *given[:3], ctx.heads)
    return d_recent, d_x, d_weight.sum(0), None


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def memory_inputs(recent: Tensor, x: Tensor, weight: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, _ = forward(recent, x, weight, heads)
    return query, key, value
