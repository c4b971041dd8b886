"""The operations of a run in the forms that are chosen for its device, against float64, before step 1.

A compiler's mistake, a faulty driver or a broken processor gives numbers that look like numbers. The test takes some
hundredths of a second, once in a process for each model.

Legend: B sequences, T tokens, H heads, d head width, h hidden width, p feature width, P keys of the prefix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isnan
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas.config import ConfigError, Fusion, ModelConfig, Normalisation, ProjectionRange, RunConfig
from atlas.kernels import gpu
from atlas.ops.banded_attention import Prefix, banded_attention
from atlas.ops.chunk_scan import Scan, open_state
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.features import feature_counts
from atlas.ops.gated_branch import gated_branch
from atlas.ops.memory_inputs import memory_inputs
from atlas.ops.mixed_queries import mixed_queries
from atlas.ops.own_precision import products_in
from atlas.ops.qk_projection import Accumulator, project
from atlas.ops.rms_norm import rms_norm
from atlas.ops.rules import learning_rule
from atlas.ops.rules.rule import LearningRule
from atlas.ops.swiglu import swiglu
from atlas.runs.environment import kernels_in_words

B, T, H, P, LAGS = 2, 40, 2, 8, 4
CHUNK, WINDOW, MOST_FEATURES = 16, 8, 64
# Allowed error beside the largest number of its tensor: in float32, and with products in fewer bits (0.007 on a CPU).
EXACT, ROUNDED = 1e-3, 0.1

_agreed: dict[str, Agreement] = {}  # what this process has tested


class Agreement(NamedTuple):
    """How far the operations are from their references: the event `self_test`."""

    operations: int
    error: float  # the largest, beside the largest number of its tensor
    worst: str  # the operation that has it, and in what
    allowed: float
    seconds: float

    @property
    def problem(self) -> str:
        """ "" where all are within bounds; NaN is not."""
        if self.error <= self.allowed:
            return ""
        return f"{self.worst} differs from float64 by {self.error:.1%} (allowed: {self.allowed:.1%})"


class Operation(NamedTuple):
    name: str
    function: Callable[..., Sequence[Tensor]]
    tensors: Sequence[Tensor]  # float32 on the CPU; a mask has no gradient


def require_agreement(config: RunConfig, device: torch.device, precision: torch.dtype) -> Agreement:
    """Raise `ConfigError` where outputs or gradients of an operation are not those of its reference."""
    kernels = kernels_in_words(device)
    key = f"{config.model} {device.type} {precision} {kernels} {gpu.wanted()}"
    if key not in _agreed:
        found = agreement(operations(config.model), device, precision)
        if found.problem:
            raise ConfigError(f"device.kernels={config.device.kernels}: {kernels} are wrong here: {found.problem}")
        _agreed[key] = found
    return _agreed[key]


def agreement(operations: Iterable[Operation], device: torch.device, precision: torch.dtype) -> Agreement:
    began = time.perf_counter()
    rounded = device.type == "cuda" or precision is not torch.float32
    largest, worst, tested = 0.0, "", list(operations)
    for operation in tested:
        wanted = values(operation, torch.device("cpu"), torch.float64)
        found = values(operation, device, torch.float32, precision)
        for what, ours in found.items():
            error = (ours - wanted[what]).abs().max().item() / max(wanted[what].abs().max().item(), 1e-3)
            if not (error <= largest or isnan(largest)):  # NaN is worse than all
                largest, worst = error, f"{what} of {operation.name}"
    return Agreement(len(tested), largest, worst, ROUNDED if rounded else EXACT, round(time.perf_counter() - began, 3))


def values(
    operation: Operation, device: torch.device, dtype: torch.dtype, precision: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Outputs of an operation on inputs of `dtype` and gradients of these, in float64 on the CPU. `precision`: of the
    products, as in training."""
    with torch.enable_grad():
        given = [
            part.to(device, dtype).requires_grad_() if part.is_floating_point() else part.to(device)
            for part in operation.tensors
        ]
        with products_in(precision, device):
            outputs = operation.function(*given)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(part.shape, generator=generator).to(device) for part in outputs]
        total = torch.stack([(part * weight).sum() for part, weight in zip(outputs, weights, strict=True)]).sum()
        leaves = [part for part in given if part.requires_grad]
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    named = {f"output {number}": part for number, part in enumerate(outputs)}
    named |= {f"the gradient of input {number}": part for number, part in enumerate(gradients) if part is not None}
    return {name: part.detach().to("cpu", torch.float64) for name, part in named.items()}


def operations(model: ModelConfig) -> Iterator[Operation]:
    """The operations of the model, each in the form that it uses, with its head width, on few tokens."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=generator)

    def uniform(*shape: int, most: float = 1.0) -> Tensor:
        return most * torch.rand(shape, generator=generator)

    d = model.width // model.heads
    width = H * d
    yield Operation("rms_norm", _norm, [normal(B, T, width), normal(width)])
    yield Operation("swiglu", lambda x: (swiglu(x),), [normal(B, T, 2 * width)])
    pairs = [normal(B, H, WINDOW - 1 + T, d) for _ in range(2)]
    seen = torch.arange(B * (WINDOW - 1 + T)).view(B, -1) % 7 > 0
    prefix = [normal(H, P, d), normal(H, P, d)]
    yield Operation("banded_attention", _attention, [normal(B, H, T, d), *pairs, seen, *prefix])
    if not model.memory.enabled:
        return
    memory, rows = model.memory, B * H
    if memory.convolution and not memory.activate_keys:
        yield Operation(
            "memory_inputs", _inputs, [normal(*shape, 3 * width) for shape in ((B, LAGS - 1), (B, T), (LAGS,))]
        )
    projection = memory.qk_projection
    if projection.range is not ProjectionRange.off:
        per_key, divide = projection.normalisation is Normalisation.per_key, not projection.renormalise
        sums = [normal(rows, d, d, scale=0.1), uniform(rows) + 1]
        pair = [normal(rows, T, d, scale=0.3) for _ in range(2)]

        def projected(matrix: Tensor, total: Tensor, query: Tensor, key: Tensor) -> Sequence[Tensor]:
            out, after = project(Accumulator(matrix, total, 0), query, key, per_key=per_key, divide=divide)
            return out, after.matrix

        yield Operation("qk_projection", projected, [*sums, *pair])
        if projection.mix and projection.renormalise:
            mixed = [normal(rows, T, d), normal(rows, T, d), normal(H)]
            yield Operation("mixed_queries", lambda *given: (mixed_queries(*given),), mixed)
    if model.fusion is not Fusion.additive:
        adds = model.fusion is Fusion.gated_sum
        gate = [normal(B, T, width), normal(B, T, width), normal(width), 3 * uniform()]
        yield Operation("gated_branch", lambda *given: gated_branch(*given, adds=adds), gate)
    h, p = memory.hidden, min(sum(feature_counts(memory.feature_width or d, memory.degree)), MOST_FEATURES)
    weights = [normal(rows, d, h, scale=0.1), normal(rows, 2 * h, p, scale=h**-0.25)]
    memories = [("the local memories' chunks", memory, False)]
    if memory.use_global:
        memories.append(("the global memory's chunks", memory.of_global(), True))
    for name, settings, at_start in memories:
        rule = learning_rule(settings)
        fields = [F.normalize(normal(rows, T, part), dim=-1) for part in (d, d, d, p, p)]
        maxima = [control.maximum for control in rule.controls]
        controls = torch.stack([uniform(rows, T, most=most) for most in maxima], -1) if maxima else normal(rows, T, 0)
        limits = (memory.curvature_max, 0.0) if at_start else (0.0, memory.curvature_max_local)
        scan = Scan(rule, CHUNK, memory.weight_norm_max, at_start, memory.recompute, *limits)

        def chunks(*given: Tensor, scan: Scan = scan, rule: LearningRule = rule) -> Sequence[Tensor]:
            if isinstance(rule, nn.Module):
                rule.to(given[7])
            curved = {"curved": scan.curvature_max > 0, "curved_local": scan.curvature_max_local > 0}
            out, state = scan(open_state(rule, FastWeights(*given[7:]), **curved), ChunkInputs(*given[:7]))
            return out, *state.start

        yield Operation(name, chunks, [*fields, uniform(rows, T, most=0.2), controls, *weights])


def _norm(x: Tensor, weight: Tensor) -> Sequence[Tensor]:
    if x.dtype is torch.float64:  # with the epsilon of float32
        return (F.rms_norm(x, weight.shape, weight, torch.finfo(torch.float32).eps),)
    return (rms_norm(x, weight),)


def _attention(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, *prefix: Tensor) -> Sequence[Tensor]:
    return (banded_attention(query, keys, values, valid, WINDOW, Prefix(*prefix)),)


def _inputs(recent: Tensor, x: Tensor, weight: Tensor) -> Sequence[Tensor]:
    return memory_inputs(recent, x, weight, H)
