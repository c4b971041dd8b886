"""Queries, keys and values of a memory's rows from their projections.

    y_t = sum_lag w[lag] * x_{t - lag},     q = y_q / ||y_q||,  k = y_k / ||y_k||,  v = silu(y_v)

Legend: B sequences, H heads, N = B * H rows, T tokens, d head width, D = H * d, L lags.
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from atlas.kernels.signatures import InputSizes
from atlas.ops.causal_convolution import causal_convolution
from atlas.ops.compiled import addresses, dense, kernels_for, rows
from atlas.ops.unit_rows import unit_rows


def memory_inputs(led: Tensor, weight: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, L - 1 + T, 3D] led by the projections before the stretch, w [L, 3D] -> q, k, v [N, T, d]."""
    kernel = kernels_for((led, weight), [led.shape[2] // (3 * heads)])
    if kernel is None:
        return plain_inputs(led, weight, heads)
    query, key, value = CompiledInputs.apply(kernel, heads, led, weight)  # type: ignore[no-untyped-call]
    return query, key, value


def plain_inputs(led: Tensor, weight: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = rows_of_heads(causal_convolution(led, weight), heads)
    return unit_rows(query), unit_rows(key), F.silu(value)


def rows_of_heads(mixed: Tensor, heads: int) -> Tensor:
    """[B, T, 3D] -> [3, N, T, d]"""
    rows: Tensor = mixed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
    return rows


class CompiledInputs(torch.autograd.Function):
    """(library, H, x, w) -> q, k, v as `plain_inputs`, by the compiled kernel of `atlas/kernels/inputs.cpp`."""

    @staticmethod
    def forward(ctx: Any, kernel: ctypes.CDLL, heads: int, led: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        led, weight = led.contiguous(), weight.contiguous()
        batch, length, width = led.shape
        lags = weight.shape[0]
        tokens = length - lags + 1
        sizes = InputSizes(batch, heads, tokens, width // (3 * heads), lags, torch.get_num_threads())
        out = led.new_empty(3, batch * heads, tokens, sizes.width)
        inverse = led.new_empty(2, batch * heads, tokens)
        kernel.atlas_inputs_forward(byref(sizes), *addresses(led, weight, out, inverse))
        ctx.save_for_backward(led, weight, out, inverse)
        ctx.kernel, ctx.sizes = kernel, sizes
        return out.unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        led, weight, out, inverse = ctx.saved_tensors
        gradients = [dense(part) for part in given]
        d_led, d_weight = torch.zeros_like(led), weight.new_zeros(led.shape[0], *weight.shape)
        ctx.kernel.atlas_inputs_backward(
            byref(ctx.sizes),
            *addresses(led, weight, out, inverse),
            *(byref(rows(part)) for part in gradients),
            *addresses(d_led, d_weight),
        )
        return None, None, d_led, d_weight.sum(0)
