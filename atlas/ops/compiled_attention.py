"""Window attention by the compiled kernel of `atlas/kernels/attention.cpp`: the same function as the block products of
`banded_attention.py`, without their copies of scores and keys.

`tests/unit/ops/test_compiled_attention.py` compares both.

Legend: B sequences, H heads, T tokens, d head width, w window, P prefix.
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from atlas.kernels.signatures import AttentionGradients, AttentionInputs, AttentionSizes, Heads
from atlas.ops.compiled import addresses, dense, kernels_for

WIDEST_WINDOW = 1024  # tokens whose scores still fit the cache


def attention_kernel(query: Tensor, keys: Tensor, values: Tensor, window: int) -> ctypes.CDLL | None:
    """The compiled library if it takes such an attention."""
    return kernels_for((query, keys, values), query.shape[3:]) if window <= WIDEST_WINDOW else None


class CompiledAttention(torch.autograd.Function):
    """(library, w, q [B, H, T, d], k and v [B, H, w - 1 + T, d], valid [B, w - 1 + T], prefix keys and values
    [H, P, d]) -> [B, H, T, d], which lies in memory as [B, T, H, d]."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: ctypes.CDLL,
        window: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        valid: Tensor,
        prefix_keys: Tensor,
        prefix_values: Tensor,
    ) -> Tensor:
        batch, heads, tokens, width = query.shape
        tensors = [
            *map(dense, (query, keys, values)),
            *(t.contiguous() for t in (valid, prefix_keys, prefix_values)),
        ]
        sizes = AttentionSizes(batch, heads, tokens, width, window, prefix_keys.shape[1], torch.get_num_threads())
        out = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
        sums = query.new_empty(batch, heads, tokens)  # log-sum-exp of every query's scores
        kernel.atlas_attention_forward(byref(sizes), byref(_inputs(tensors)), byref(_heads(out)), sums.data_ptr())
        ctx.save_for_backward(*tensors, out, sums)
        ctx.kernel, ctx.sizes = kernel, sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out, sums = ctx.saved_tensors
        query, keys, values, _, prefix_keys, _ = tensors
        d_out, sizes = dense(d_out), ctx.sizes
        d_query = torch.empty_like(query)
        d_keys, d_values = (torch.zeros(part.shape) for part in (keys, values))
        d_prefix = torch.zeros(2, sizes.batch, *prefix_keys.shape)  # of keys and values, a sequence at a time
        gradients = AttentionGradients(
            _heads(d_query), d_keys.data_ptr(), d_values.data_ptr(), d_prefix[0].data_ptr(), d_prefix[1].data_ptr()
        )
        ctx.kernel.atlas_attention_backward(
            byref(sizes), byref(_inputs(tensors)), byref(_heads(out)), sums.data_ptr(), byref(_heads(d_out)),
            byref(gradients),
        )  # fmt: skip
        return None, None, d_query, d_keys, d_values, None, *d_prefix.sum(1)


def _heads(part: Tensor) -> Heads:
    return Heads(part.data_ptr(), *part.stride()[:3])


def _inputs(tensors: list[Tensor]) -> AttentionInputs:
    return AttentionInputs(*map(_heads, tensors[:3]), *addresses(*tensors[3:]))
