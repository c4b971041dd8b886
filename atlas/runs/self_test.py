"""The operations of a run in the forms that are chosen for its device, against float64, before step 1.

A compiler's mistake, a faulty driver or a broken processor gives numbers that look like numbers. The test takes some
hundredths of a second, once in a process for each model.

Legend: B sequences, T tokens, H heads, d head width, h hidden width, p feature width, P keys of the prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import ConfigError, ModelConfig, RunConfig
from atlas.kernels import gpu
from atlas.kernels.library import description
from atlas.ops.banded_attention import Prefix, banded_attention
from atlas.ops.chunk_scan import Scan, open_state
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.features import feature_counts
from atlas.ops.gated_branch import gated_branch
from atlas.ops.memory_inputs import memory_inputs
from atlas.ops.mixed_queries import mixed_queries
from atlas.ops.qk_projection import Accumulator, project
from atlas.ops.rms_norm import rms_norm
from atlas.ops.rules import learning_rule
from atlas.ops.swiglu import swiglu

B, T, H, P, LAGS = 2, 40, 2, 8, 4
CHUNK, WINDOW, MOST_FEATURES = 16, 8, 64
# Allowed error beside the largest number of its tensor: in float32, and with products in fewer bits (0.007 on a CPU).
EXACT, ROUNDED = 1e-3, 0.1

_agreed: set[str] = set()  # what this process has tested


class Operation(NamedTuple):
    name: str
    function: Callable[..., Sequence[Tensor]]
    tensors: Sequence[Tensor]  # float32 on the CPU; a mask has no gradient


def require_agreement(config: RunConfig, device: torch.device, precision: torch.dtype) -> None:
    """Raise `ConfigError` where outputs or gradients of an operation are not those of its reference."""
    kernels = gpu.description() if device.type == "cuda" else description()
    key = f"{config.model} {device.type} {precision} {kernels} {gpu.wanted()}"
    if key in _agreed:
        return
    found = disagreement(operations(config.model), device, precision)
    if found:
        raise ConfigError(f"device.kernels={config.device.kernels}: {kernels} are wrong here: {found}")
    _agreed.add(key)


def disagreement(operations: Iterable[Operation], device: torch.device, precision: torch.dtype) -> str:
    """Which operation differs most from its reference, by how much and in what; "" where all are within bounds."""
    rounded = device.type == "cuda" or precision is not torch.float32
    allowed = ROUNDED if rounded else EXACT
    worst, told = allowed, ""
    for operation in operations:
        wanted = values(operation, torch.device("cpu"), torch.float64)
        found = values(operation, device, torch.float32, precision)
        for what, ours in found.items():
            error = (ours - wanted[what]).abs().max().item() / max(wanted[what].abs().max().item(), 1e-3)
            if not error <= worst:  # NaN is worse
                worst = error
                told = f"{what} of {operation.name} differs from float64 by {error:.1%} (allowed: {allowed:.1%})"
    return told


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
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
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
    """Those that the model uses, of its head width, on few tokens."""
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
    yield Operation("memory_inputs", _inputs, [normal(B, LAGS - 1 + T, 3 * width), normal(LAGS, 3 * width)])
    sums = [normal(rows, d, d, scale=0.1), uniform(rows) + 1]
    yield Operation("qk_projection", _projection, [*sums, normal(rows, T, d, scale=0.3), normal(rows, T, d, scale=0.3)])
    yield Operation(
        "mixed_queries", lambda *given: (mixed_queries(*given),), [normal(rows, T, d), normal(rows, T, d), normal(H)]
    )
    gate = [normal(B, T, width), normal(B, T, width), normal(width), 3 * uniform()]
    yield Operation("gated_branch", lambda *given: gated_branch(*given, adds=True), gate)
    rule = learning_rule(memory)
    h, p = memory.hidden, min(sum(feature_counts(memory.feature_width or d, memory.degree)), MOST_FEATURES)
    fields = [F.normalize(normal(rows, T, part), dim=-1) for part in (d, d, d, p, p)]
    controls = (
        torch.stack([uniform(rows, T, most=control.maximum) for control in rule.controls], -1)
        if rule.controls
        else normal(rows, T, 0)
    )
    weights = [normal(rows, d, h, scale=0.1), normal(rows, 2 * h, p, scale=h**-0.25)]
    for name, at_start in (("the local memories' chunks", False), ("the global memory's chunks", True)):
        scan = Scan(rule, CHUNK, memory.weight_norm_max, at_start, recompute=False)

        def chunks(*given: Tensor, scan: Scan = scan) -> Sequence[Tensor]:
            out, state = scan(open_state(rule, FastWeights(*given[7:])), ChunkInputs(*given[:7]))
            return out, *state.start

        yield Operation(name, chunks, [*fields, uniform(rows, T, most=0.2), controls, *weights])


def _norm(x: Tensor, weight: Tensor) -> Sequence[Tensor]:
    if x.dtype is torch.float64:  # with the epsilon of float32
        return (F.rms_norm(x, weight.shape, weight, torch.finfo(torch.float32).eps),)
    return (rms_norm(x, weight),)


def _attention(query: Tensor, keys: Tensor, values: Tensor, valid: Tensor, *prefix: Tensor) -> Sequence[Tensor]:
    return (banded_attention(query, keys, values, valid, WINDOW, Prefix(*prefix)),)


def _inputs(x: Tensor, weight: Tensor) -> Sequence[Tensor]:
    return memory_inputs(x, weight, H)


def _projection(matrix: Tensor, total: Tensor, query: Tensor, key: Tensor) -> Sequence[Tensor]:
    out, after = project(Accumulator(matrix, total, 0), query, key, per_key=False)
    return out, after.matrix
