"""The operations that have compiled kernels, each with tensors of random shapes.

Legend: B sequences, T tokens, H heads, d head width, N rows, h hidden width, p feature width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.ops.banded_attention import Prefix, banded_attention
from atlas.ops.banded_attention import cpp as attention
from atlas.ops.chunk_scan import Scan, open_state
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.gated_branch import cpp as gate
from atlas.ops.gated_branch import gated_branch
from atlas.ops.memory_inputs import cpp as inputs
from atlas.ops.memory_inputs import memory_inputs
from atlas.ops.mixed_queries import cpp as mixed
from atlas.ops.mixed_queries import mixed_queries
from atlas.ops.newton_schulz import cpp as orthogonal
from atlas.ops.newton_schulz import newton_schulz
from atlas.ops.qk_projection import Accumulator, project
from atlas.ops.qk_projection import cpp as products
from atlas.ops.rms_norm import cpp as norm
from atlas.ops.rms_norm import rms_norm
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.momentum import Momentum
from atlas.ops.swiglu import cpp as gated
from atlas.ops.swiglu import swiglu
from atlas.ops.whole_chunks import cpp as chunks


@dataclass(frozen=True)
class Operation:
    """A function of tensors, some of which may be masks, and the operator of `torch.ops.atlas` below it."""

    name: str
    function: Callable[..., tuple[Tensor, ...]]
    tensors: list[Tensor]
    operator: Callable[..., Any]


def size(random: Random, most: int, *, zero: bool = True) -> int:
    """Mostly small, seldom 0."""
    return 0 if zero and random.random() < 0.03 else random.randint(1, most)


def width(random: Random, most: int = 3) -> int:
    """Mostly what the kernels take."""
    return 8 * random.randint(1, most) if random.random() < 0.85 else size(random, 20, zero=False)


def draw_norm(random: Random) -> Operation:
    shape = [size(random, 70 if dim else 5) for dim in range(random.randint(0, 2))]
    D = width(random, 6)

    def function(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        if x.dtype is torch.float64:  # with the epsilon of float32
            return (F.rms_norm(x, weight.shape, weight, torch.finfo(torch.float32).eps),)
        return (rms_norm(x, weight),)

    return Operation("rms_norm", function, [torch.randn(*shape, D), torch.randn(D)], norm.forward)


def draw_swiglu(random: Random) -> Operation:
    shape = [size(random, 9) for _ in range(random.randint(0, 3))]
    return Operation("swiglu", lambda x: (swiglu(x),), [torch.randn(*shape, 2 * width(random, 6))], gated.forward)


def draw_newton_schulz(random: Random) -> Operation:
    shape, n = [size(random, 4) for _ in range(random.randint(1, 2))], width(random, 6)
    sides = (n, size(random, 70, zero=False))
    iterations = random.randint(1, 3)  # each multiplies rounding beside a lower rank by 3.4
    return Operation(
        "newton_schulz",
        lambda matrix: (newton_schulz(matrix, iterations, 0.1),),
        [torch.randn(*shape, *(sides if random.random() < 0.5 else sides[::-1]))],
        lambda matrix: orthogonal.forward(matrix, iterations, 0.1),
    )


def draw_gate(random: Random) -> Operation:
    shape = [size(random, 70 if dim else 5) for dim in range(random.randint(0, 2))]
    D, adds = width(random, 6), random.random() < 0.5
    tensors = [torch.randn(*shape, D), torch.randn(*shape, D), torch.randn(D), 3 * torch.rand(())]
    return Operation(
        "gated_branch",
        lambda *given: gated_branch(*given, adds=adds),
        tensors,
        lambda *given: gate.forward(*given, adds, inf),
    )


def draw_inputs(random: Random) -> Operation:
    heads, lags = random.randint(1, 3), random.randint(1, 5)
    D = 3 * heads * width(random)
    B = size(random, 3)
    tensors = [torch.randn(B, lags - 1, D), torch.randn(B, size(random, 20), D), torch.randn(lags, D)]
    return Operation(
        "memory_inputs",
        lambda *t: memory_inputs(*t, heads),
        tensors,
        lambda *t: inputs.forward(*t, heads),
    )


def draw_attention(random: Random) -> Operation:
    B, H, T, d, window = size(random, 2), size(random, 3), size(random, 70), width(random), random.randint(1, 40)
    P = random.choice((0, 0, random.randint(1, 9)))
    pairs = [torch.randn(B, H, window - 1 + T, d) for _ in range(2)]
    valid = torch.tensor(
        [random.random() < random.choice((0.5, 1)) for _ in range(B * (window - 1 + T))], dtype=torch.bool
    )
    tensors = [torch.randn(B, H, T, d), *pairs, valid.view(B, window - 1 + T)]
    if P:
        tensors += [torch.randn(H, P, d), torch.randn(H, P, d)]

    def function(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, *prefix: Tensor) -> tuple[Tensor, ...]:
        return (banded_attention(query, keys, values, valid, window, Prefix(*prefix) if prefix else None),)

    return Operation(
        "banded_attention", function, tensors, lambda *t: attention.forward(*t, *[None] * (6 - len(t)), window)
    )


def draw_projection(random: Random) -> Operation:
    N, T, d = size(random, 3), size(random, 140), width(random)
    tensors = [0.1 * torch.randn(N, d, d), torch.rand(N) + 1, 0.3 * torch.randn(N, T, d), 0.3 * torch.randn(N, T, d)]
    per_key, divide = random.random() < 0.5, random.random() < 0.5

    def function(matrix: Tensor, total: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        out, after = project(Accumulator(matrix, total, 0), query, key, per_key=per_key, divide=divide)
        return out, after.matrix, after.norm

    def operator(matrix: Tensor, total: Tensor, query: Tensor, key: Tensor) -> Any:
        return products.forward(matrix, query, key)

    return Operation("qk_projection", function, tensors, operator)


def draw_mix(random: Random) -> Operation:
    heads, T, d = random.randint(1, 3), size(random, 20), width(random)
    shape = (heads * size(random, 3), T, d)
    tensors = [torch.randn(shape), torch.randn(shape), torch.randn(heads)]
    return Operation("mixed_queries", lambda *given: (mixed_queries(*given),), tensors, mixed.forward)


def draw_scan(random: Random) -> Operation:
    N, T, d, h, p = size(random, 3), size(random, 40), width(random, 2), width(random, 2), width(random)
    momentum = random.random() < 0.5
    rule = Momentum(0.5, 0.9) if momentum else GradientDescent()
    chunk, norm_max = random.choice((1, 4, 7, 8, 16, 100)), random.choice((0.05, 10.0))
    scan = Scan(rule, chunk, norm_max, random.random() < 0.5, recompute=random.random() < 0.2)
    fields = [0.5 * torch.randn(N, T, part) for part in (d, d, d, p, p)]
    weights = [0.3 * torch.randn(N, d, h), 0.3 * torch.randn(N, 2 * h, p)]
    tensors = [*fields, 0.2 * torch.rand(N, T), torch.rand(N, T, len(rule.controls)), *weights]

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        out, state = scan(open_state(rule, FastWeights(*given[7:])), ChunkInputs(*given[:7]))
        return out, *state.start, *(state.kept[0] if momentum else ())

    def operator(*given: Tensor) -> Any:
        settings = random.choice((1, 2, max(1, T))), random.random() < 0.5, random.choice((0, 1, 2)), 1.0, 1.0, True
        gates = torch.rand(N, max(1, T // settings[0]), 2) if settings[2] == 2 else None
        second = given[7:] if settings[2] == 2 else (None, None)
        return chunks.forward(*given[:6], gates, *given[7:], *second, *settings)

    return Operation("chunk_scan", function, tensors, operator)


DRAWS = (
    draw_norm,
    draw_swiglu,
    draw_newton_schulz,
    draw_gate,
    draw_inputs,
    draw_attention,
    draw_projection,
    draw_mix,
    draw_scan,
)
