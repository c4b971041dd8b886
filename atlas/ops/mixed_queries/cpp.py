"""Mixed queries by the kernel of `atlas/kernels/mix.cpp`: one pass forward and one backward."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from atlas.kernels.call import Kernel, Shapes, operator


class MixSizes(NamedTuple):
    rows: int
    tokens: int
    width: int
    heads: int


def _sizes(query: Tensor, mix: Tensor) -> MixSizes:
    rows, tokens, width = query.shape
    heads = mix.shape[0]
    if not heads or rows % heads:
        raise ValueError(f"mixed_queries: {rows} rows, must be a multiple of the {heads} values of mix, at least one")
    return MixSizes(rows, tokens, width, heads)


def _tokens(s: MixSizes, *names: str) -> Shapes:
    return dict.fromkeys(names, (s.rows, s.tokens, s.width))


def _inverse(s: MixSizes) -> Shapes:
    return {"inverse": (2, s.rows, s.tokens)}


FORWARD = Kernel(
    "atlas_mix_forward",
    lambda s: {**_tokens(s, "query", "projected"), "mix": (s.heads,)},
    lambda s: {**_tokens(s, "out"), **_inverse(s)},
    strided=frozenset({"query", "projected"}),
)
BACKWARD = Kernel(
    "atlas_mix_backward",
    lambda s: {**_tokens(s, "projected"), "mix": (s.heads,), **_tokens(s, "out"), **_inverse(s), **_tokens(s, "d_out")},
    lambda s: {**_tokens(s, "d_query", "d_projected"), "d_mix": (s.rows,)},
    strided=frozenset({"projected", "d_out"}),
)
forward = operator(
    "mixed_queries(Tensor query, Tensor projected, Tensor mix) -> (Tensor, Tensor)",
    FORWARD,
    lambda query, projected, mix: (_sizes(query, mix), (query, projected, mix)),
)
backward = operator(
    "mixed_queries_backward(Tensor projected, Tensor mix, Tensor out, Tensor inverse, Tensor d_out) "
    "-> (Tensor, Tensor, Tensor)",
    BACKWARD,
    lambda projected, mix, *others: (_sizes(projected, mix), (projected, mix, *others)),
)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    _, projected, mix = inputs
    ctx.save_for_backward(projected, mix, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor]:
    saved = ctx.saved_tensors  # may be read once
    d_query, d_projected, d_mix = backward(*saved, d_out)
    return d_query, d_projected, d_mix.view(-1, len(saved[1])).sum(0)


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def mixed_queries(query: Tensor, projected: Tensor, mix: Tensor) -> Tensor:
    out: Tensor = forward(query, projected, mix)[0]
    return out
