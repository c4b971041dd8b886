"""Causal products of the Q-K projection by the kernel of `atlas/kernels/products.cpp`.

Legend: N rows, T tokens, d head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from atlas.kernels.call import Kernel, Shapes, floats, operator


class ProductSizes(NamedTuple):
    rows: int
    tokens: int
    width: int


def _sizes(query: Tensor) -> ProductSizes:
    return ProductSizes(*query.shape)


def _tokens(s: ProductSizes, *names: str) -> Shapes:
    return dict.fromkeys(names, (s.rows, s.tokens, s.width))


def _matrix(s: ProductSizes, name: str) -> Shapes:
    return {name: (s.rows, s.width, s.width)}


def _saved(s: ProductSizes) -> Shapes:
    return {"saved": (s.rows, floats("atlas_products_floats", s))}


FORWARD = Kernel(
    "atlas_products_forward",
    lambda s: {**_matrix(s, "start"), **_tokens(s, "query", "key")},
    lambda s: {**_tokens(s, "out"), **_matrix(s, "total"), **_saved(s)},
    strided=frozenset({"query", "key"}),
)
BACKWARD = Kernel(
    "atlas_products_backward",
    lambda s: {**_tokens(s, "query", "key", "d_out"), **_saved(s), **_matrix(s, "d_total")},
    lambda s: {**_matrix(s, "d_start"), **_tokens(s, "d_query", "d_key")},
    strided=frozenset({"query", "key", "d_out"}),
)
forward = operator(
    "causal_products(Tensor start, Tensor query, Tensor key) -> (Tensor, Tensor, Tensor)",
    FORWARD,
    lambda start, query, key: (_sizes(query), (start, query, key)),
)
backward = operator(
    "causal_products_backward(Tensor query, Tensor key, Tensor d_out, Tensor saved, Tensor d_total) "
    "-> (Tensor, Tensor, Tensor)",
    BACKWARD,
    lambda query, *others: (_sizes(query), (query, *others)),
)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, query, key = inputs
    saved = output[2]
    ctx.save_for_backward(query, key, saved)
    ctx.mark_non_differentiable(saved)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out: Tensor | None, d_total: Tensor | None, _: None) -> Any:
    query, key, saved = ctx.saved_tensors
    d_out = query.new_zeros(query.shape) if d_out is None else d_out
    if d_total is None:
        d_total = query.new_zeros(query.shape[0], query.shape[2], query.shape[2])
    return backward(query, key, d_out, saved, d_total)


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def causal_products(start: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """(start [N, d, d], q [N, T, d], k [N, T, d]) -> M_t q_t [N, T, d], and the matrix after them [N, d, d]."""
    out, total, _ = forward(start, query, key)
    return out, total
