"""Causal products of the Q-K projection by the Triton kernels of `atlas/kernels/triton_products.py`.

Their products are in TF32, as those of PyTorch's operations on a GPU. Legend: N rows, T tokens, d head width.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from atlas.config import TRITON_WIDTHS
from atlas.kernels import gpu
from atlas.ops.own_precision import autocasts

TILE = 32  # tokens
WIDTHS = (*TRITON_WIDTHS, 128)  # of heads; the products need less shared memory than the scan
WARPS = 4


def takes(start: Tensor, query: Tensor, key: Tensor) -> bool:
    """Whether the kernels take these, where products may be in TF32. The first time this compiles them."""
    tensors = start, query, key
    fits = query.shape[2] in WIDTHS and all(part.dtype is torch.float32 for part in tensors)
    if not (fits and autocasts(query) and all(map(gpu.takes, tensors))):
        return False
    return ready(query.shape[2])


def ready(width: int) -> bool:
    """Whether the kernels can be launched."""
    return gpu.interpreted() or gpu.ready(f"the Q-K products (width {width})", _why_not(width))


def causal_products(start: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """(start [N, d, d], q [N, T, d], k [N, T, d]) -> M_t q_t [N, T, d], and the matrix after them [N, d, d]."""
    out, total = forward(start, query, key)
    return out, total


@custom_op(
    "atlas::triton_products", mutates_args=(), schema="(Tensor start, Tensor query, Tensor key) -> (Tensor, Tensor)"
)
def forward(start: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    from atlas.kernels.triton_products import products_forward

    query, key = (gpu.rows(part) for part in (query, key))
    out, total = _forward_results(start, query, key)
    products_forward[(len(query),)](
        start.contiguous(), query, key, out, total, *gpu.strides(query, key), query.shape[1],
        **constants(query.shape[2]), num_warps=WARPS,
    )  # fmt: skip
    return out, total


@custom_op(
    "atlas::triton_products_backward",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor total, Tensor d_out, Tensor d_total) -> (Tensor, Tensor, Tensor)",
)
def backward(query: Tensor, key: Tensor, total: Tensor, d_out: Tensor, d_total: Tensor) -> tuple[Tensor, ...]:
    from atlas.kernels.triton_products import products_backward

    query, key, d_out = (gpu.rows(part) for part in (query, key, d_out))
    results = _backward_results(query, key, total, d_out, d_total)
    products_backward[(len(query),)](
        query, key, total, d_out, d_total.contiguous(), *results, *gpu.strides(query, key, d_out), query.shape[1],
        **constants(query.shape[2]), num_warps=WARPS,
    )  # fmt: skip
    return results


def _forward_results(start: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), start.new_empty(start.shape)


def _backward_results(
    query: Tensor, key: Tensor, total: Tensor, d_out: Tensor, d_total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return total.new_empty(total.shape), query.new_empty(query.shape), key.new_empty(key.shape)


forward.register_fake(_forward_results)
backward.register_fake(_backward_results)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[1:], output[1])


def _gradients(ctx: Any, d_out: Tensor, d_total: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = backward(*ctx.saved_tensors, d_out, d_total)
    return found


forward.register_autograd(_gradients, setup_context=_save_for_backward)


def constants(width: int) -> dict[str, Any]:
    """What the kernels are compiled for."""
    return {"R": TILE, "D": width, "PRODUCTS": "float32" if gpu.interpreted() else "tf32"}


@cache
def _why_not(width: int) -> str:
    from atlas.kernels.triton_products import products_backward, products_forward

    numbers, settings = torch.float32, {**constants(width), "num_warps": WARPS, "grid": (1,)}
    return gpu.why_not(
        lambda: products_forward.warmup(*[numbers] * 5, *[16] * 5, **settings),
        lambda: products_backward.warmup(*[numbers] * 8, *[16] * 7, **settings),
    )
