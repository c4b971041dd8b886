"""Window attention by the kernel of `atlas/kernels/attention.cpp`, which copies neither scores nor keys.

Legend: B sequences, H heads, T tokens, d head width, w window, P prefix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from atlas.kernels.call import Kernel, Shapes, operator

WIDEST_WINDOW = 1024  # tokens whose scores still fit the cache


class AttentionSizes(NamedTuple):
    batch: int
    heads: int
    tokens: int
    width: int
    window: int
    prefix: int


def _sizes(query: Tensor, prefix: Tensor | None, window: int) -> AttentionSizes:
    batch, heads, tokens, width = query.shape
    return AttentionSizes(batch, heads, tokens, width, window, 0 if prefix is None else prefix.shape[1])


def _inputs(s: AttentionSizes) -> Shapes:
    seen = s.window - 1 + s.tokens
    pairs = (s.batch, s.heads, seen, s.width)
    prefix = (s.heads, s.prefix, s.width) if s.prefix else None
    query = (s.batch, s.heads, s.tokens, s.width)
    return {
        "query": query, "keys": pairs, "values": pairs, "valid": (s.batch, seen),
        "prefix_keys": prefix, "prefix_values": prefix,
    }  # fmt: skip


def _results(s: AttentionSizes) -> Shapes:
    return {"out": (s.batch, s.tokens, s.heads, s.width), "sums": (s.batch, s.heads, s.tokens)}


def _gradients_of(s: AttentionSizes) -> Shapes:
    pairs = _inputs(s)["keys"]
    d_prefix = (2, s.batch, s.heads, s.prefix, s.width)  # of keys and values, a sequence at a time
    return {"d_query": _results(s)["out"], "d_keys": pairs, "d_values": pairs, "d_prefix": d_prefix}


FORWARD = Kernel(
    "atlas_attention_forward",
    _inputs,
    _results,
    strided=frozenset({"query", "keys", "values"}),
    masks=frozenset({"valid"}),
)
BACKWARD = Kernel(
    "atlas_attention_backward",
    lambda s: {**_inputs(s), **_results(s), "d_out": (s.batch, s.heads, s.tokens, s.width)},
    _gradients_of,
    strided=FORWARD.strided | {"d_out"},
    masks=FORWARD.masks,
)
_TENSORS = "Tensor query, Tensor keys, Tensor values, Tensor valid, Tensor? prefix_keys, Tensor? prefix_values"
forward = operator(
    f"banded_attention({_TENSORS}, int window) -> (Tensor, Tensor)",
    FORWARD,
    lambda *given: (_sizes(given[0], given[4], given[-1]), given[:-1]),
)
backward = operator(
    f"banded_attention_backward({_TENSORS}, Tensor out, Tensor sums, Tensor d_out, int window) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    BACKWARD,
    lambda *given: (_sizes(given[0], given[4], given[-1]), given[:-1]),
)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_out: Tensor, _: None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    d_query, d_keys, d_values, d_prefix = backward(*saved, d_out.transpose(1, 2), ctx.window)
    d_pairs = (None, None) if saved[4] is None else d_prefix.sum(1).unbind()
    return d_query.transpose(1, 2), d_keys, d_values, None, *d_pairs, None


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def banded_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    valid: Tensor,
    window: int,
    prefix_keys: Tensor | None,
    prefix_values: Tensor | None,
) -> Tensor:
    """As the public function; the memory layout of the result is [B, T, H, d]."""
    out: Tensor = forward(query, keys, values, valid, prefix_keys, prefix_values, window)[0]
    return out.transpose(1, 2)
