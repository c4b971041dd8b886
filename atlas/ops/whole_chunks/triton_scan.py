"""The operators `atlas::scan_forward` and `atlas::scan_backward`: the Triton kernels of the memory's scan, with their
gradient. Compilers and fake tensors take each as a whole.

Legend: N rows, n chunks, C tokens of each, R tokens of a tile, T = n * C, d head width, h hidden width, p feature
width, STATE = d h + 2 h p.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch.library import custom_op

from atlas.kernels import gpu
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights

TILE = 16  # tokens: the least that `tl.dot` takes; larger tiles need more registers than there are
WARPS = 8


class Variant(NamedTuple):
    """What a kernel is compiled for."""

    chunk: int  # C
    width: int  # d
    hidden: int  # h
    features: int  # p
    prefix: bool  # whether a token reads what its chunk has written so far
    momentum: bool
    products: str  # `bf16`, or with the interpreter `emulated` or `float32`

    def __str__(self) -> str:
        sizes = f"width {self.width}, hidden {self.hidden}, features {self.features}"
        read = ", read at their start" * (not self.prefix)
        return f"chunks of {self.chunk} tokens ({sizes}{', momentum' * self.momentum}{read})"

    @property
    def constants(self) -> dict[str, Any]:
        return {
            "C": self.chunk, "R": TILE, "D": self.width, "H": self.hidden, "P": self.features,
            "PREFIX": self.prefix, "MOMENTUM": self.momentum, "PRODUCTS": self.products,
        }  # fmt: skip

    @property
    def kept(self) -> int:
        """Weights kept of a chunk: those before every tile, or those that all of its tokens read."""
        return ceil(self.chunk / TILE) if self.prefix else 1

    @property
    def state(self) -> int:
        return self.width * self.hidden + 2 * self.hidden * self.features


def scan(
    variant: Variant,
    limits: tuple[float, float],
    tokens: ChunkInputs,
    start: FastWeights,
    momentum: FastWeights | None = None,
) -> tuple[Tensor, ...]:
    """-> out [N, T, d], W1 [N, d, h], W2 over W3 [N, 2h, p], and with momentum S1 and S23 of the same shapes."""
    gates = None if momentum is None else tokens.controls.unflatten(1, (-1, variant.chunk)).mean(2)
    given = None if momentum is None else _flat(*momentum)
    settings = variant.chunk, variant.prefix, variant.products, *limits, is_grad_enabled()
    out, end, left, *_ = forward(*tokens[:6], gates, _flat(*start), given, *settings)
    return out, *_matrices(end, variant), *(_matrices(left, variant) if variant.momentum else ())


class Settings(NamedTuple):
    """Of the operators."""

    chunk: int
    prefix: bool
    products: str
    down_limit: float
    up_limit: float
    keep: bool  # what the backward pass needs

    def variant(self, key: Tensor, features: Tensor, start: Tensor, momentum: bool) -> Variant:
        width, count = key.shape[2], features.shape[2]
        hidden = start.shape[1] // (width + 2 * count)
        return Variant(self.chunk, width, hidden, count, self.prefix, momentum, self.products)


_FIELDS = "Tensor key, Tensor value, Tensor query_features, Tensor key_features, Tensor rate, Tensor? gates"
_SETTINGS = "int chunk, bool prefix, str products, float down_limit, float up_limit, bool keep"


def _forward_results(query: Tensor, *given: Any) -> tuple[Settings, Variant, tuple[Tensor, ...]]:
    """Not yet written: out [N, T, d], the weights at the end and the momentum there [N, STATE], and what the backward
    pass needs: states, momenta, scales."""
    key, _, _, features, _, _, start, momentum = given[:8]
    settings = Settings(*given[8:])
    variant = settings.variant(key, features, start, momentum is not None)
    rows, total, _ = query.shape
    chunks = total // variant.chunk
    # In half precision the products round what is kept all the same.
    kind = torch.bfloat16 if variant.products != "float32" else torch.float32
    states = (rows, chunks * variant.kept, variant.state) if settings.keep else (1,)
    momenta = (rows, chunks, variant.state) if settings.keep and variant.momentum else (1,)
    results = (
        query.new_empty(query.shape),
        torch.empty_like(start),
        torch.empty_like(start) if variant.momentum else start.new_empty(0),
        query.new_empty(states, dtype=kind),
        query.new_empty(momenta, dtype=kind),
        query.new_empty(rows, chunks, 2),
    )
    return settings, variant, results


def _backward_results(*given: Any) -> tuple[Settings, Variant, tuple[Tensor, ...]]:
    """Not yet written: the gradients of key - value, phi(q), phi(k), rate and gates, and of the weights and the
    momentum before the first chunk [N, STATE]."""
    key, _, query_features, features, rate, gates, _, _, scales, end = given[:10]
    settings = Settings(*given[13:])
    variant = settings.variant(key, features, end, gates is not None)
    tokens = (part.new_empty(part.shape) for part in (key, query_features, features, rate))
    momentum = torch.empty_like(end) if variant.momentum else end.new_empty(0)
    return settings, variant, (*tokens, torch.empty_like(scales), torch.empty_like(end), momentum)


@custom_op(
    "atlas::scan_forward",
    mutates_args=(),
    schema=f"(Tensor query, {_FIELDS}, Tensor start, Tensor? momentum, {_SETTINGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def forward(query: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """The kernel, as an operator that compilers take as a whole."""
    from atlas.kernels.triton_scan import scan_forward

    settings, variant, results = _forward_results(query, *given)
    out, end, left, states, momenta, scales = results
    tokens = *map(gpu.rows, (query, *given[:4])), given[4]
    gates, start, momentum = given[5:8]
    if momentum is not None:
        left.copy_(momentum)
    scan_forward[(len(query),)](
        *tokens, scales if gates is None else gates.contiguous(), start, out, states, momenta, scales,
        end, left if variant.momentum else end, *gpu.strides(*tokens), query.shape[1] // variant.chunk,
        settings.down_limit, settings.up_limit, **variant.constants, KEEP=settings.keep, num_warps=WARPS,
    )  # fmt: skip
    return results


@custom_op(
    "atlas::scan_backward",
    mutates_args=(),
    schema=f"({_FIELDS}, Tensor states, Tensor momenta, Tensor scales, Tensor end, Tensor d_out, Tensor d_end, "
    f"Tensor d_left, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def backward(*given: Any) -> tuple[Tensor, ...]:
    from atlas.kernels.triton_scan_backward import scan_backward

    settings, variant, results = _backward_results(*given)
    *d_tokens, d_gates, d_start, d_momentum = results
    tokens = *map(gpu.rows, given[:4]), given[4]
    gates, states, momenta, scales, end, d_out, d_end, d_left = given[5:13]
    if variant.momentum:
        d_momentum.copy_(d_left)
    scan_backward[(len(d_out),)](
        *tokens, scales if gates is None else gates.contiguous(), states, momenta, scales, end, d_out.contiguous(),
        d_end.contiguous(), *d_tokens, d_gates, d_start, d_momentum if variant.momentum else d_start,
        *gpu.strides(*tokens), d_out.shape[1] // variant.chunk, settings.down_limit, settings.up_limit,
        **variant.constants, num_warps=WARPS,
    )  # fmt: skip
    return results


forward.register_fake(lambda *given: _forward_results(*given)[2])
backward.register_fake(lambda *given: _backward_results(*given)[2])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.settings = inputs[9:]
    ctx.save_for_backward(*inputs[1:7], *output[3:], output[1])
    ctx.mark_non_differentiable(*output[3:])


def _gradients(ctx: Any, d_out: Tensor, d_end: Tensor, d_left: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    given = ctx.saved_tensors
    momentum = given[5] is not None
    d_residual, d_query_features, d_key_features, d_rate, d_gates, d_start, d_momentum = backward(
        *given, d_out, d_end, d_left, *ctx.settings
    )
    d_tokens = d_out, d_residual, -d_residual, d_query_features, d_key_features, d_rate
    d_memory = (d_gates, d_start, d_momentum) if momentum else (None, d_start, None)
    return *d_tokens, *d_memory, *[None] * len(ctx.settings)


forward.register_autograd(_gradients, setup_context=_save_for_backward)


@cache
def why_not(variant: Variant) -> str:
    """Compile the kernels of a variant, before any work is given to them. "" if they can be launched."""
    from atlas.kernels.triton_scan import scan_forward
    from atlas.kernels.triton_scan_backward import scan_backward

    kept, numbers = torch.bfloat16, torch.float32
    strides = [16] * 12
    sizes = 16, 1.0, 1.0  # chunks and bounds
    settings = {**variant.constants, "num_warps": WARPS, "grid": (1,)}
    before = [*[numbers] * 9, kept, kept, *[numbers] * 3, *strides, *sizes]
    after = [*[numbers] * 6, kept, kept, *[numbers] * 11, *strides[2:], *sizes]
    return gpu.why_not(
        lambda: scan_forward.warmup(*before, **settings, KEEP=True),
        lambda: scan_forward.warmup(*before, **settings, KEEP=False),
        lambda: scan_backward.warmup(*after, **settings),
    )


def _flat(down: Tensor, up: Tensor) -> Tensor:
    """-> [N, STATE], of its own storage."""
    return torch.cat((down.flatten(1), up.flatten(1)), dim=1)


def _matrices(flat: Tensor, variant: Variant) -> Sequence[Tensor]:
    """[N, STATE] -> W1 [N, d, h] and W2 over W3 [N, 2h, p]."""
    down, up = flat.split([variant.width * variant.hidden, 2 * variant.hidden * variant.features], dim=1)
    return down.unflatten(1, (variant.width, variant.hidden)), up.unflatten(1, (2 * variant.hidden, variant.features))
