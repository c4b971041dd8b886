"""Metrics of the memories after a training step: norms of weights, momentum and queries, inner rates and gates.

Hooks on the step's own forward pass keep references and change nothing. So the losses of a run do not depend on how
often it logs.

Legend: B sequences, T tokens, H heads, N = B * H rows, d head width, n queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atlas.models.gate import Gate
from atlas.models.language_model import AtlasModel, ModelOutput, ModelState, Reading
from atlas.models.memory import AtlasMemory, MemoryState
from atlas.models.memory_inputs import MemoryInputs
from atlas.ops.chunk_scan import written
from atlas.ops.fast_weights import FastWeights, subtract
from atlas.ops.qk_projection import EPSILON, Accumulator

QUERIES = 64  # the last ones of a row: enough for a mean cosine, at no measurable cost
SAME = 0.99  # queries of a higher cosine count as one query: runs of blanks give many of them


class Starts(NamedTuple):
    """Copies of the weights that the memories of a layer started from; the optimiser changes W_init in place."""

    global_memory: list[FastWeights]  # [N or H, ...] at the start of the pass
    local: list[FastWeights]  # [H, ...] W_init


@dataclass
class Catch:
    """What the hooks keep of the first forward pass of a step."""

    starts: list[Starts] = field(default_factory=list)  # per layer with a memory
    queries: list[Tensor] = field(default_factory=list)  # [N, n, d] per layer with a memory, unit norm
    keys: list[Tensor] = field(default_factory=list)  # [N, T, d] the same
    values: list[Tensor] = field(default_factory=list)  # [N, n, d] the same, of any norm
    rates: list[Tensor] = field(default_factory=list)  # [memories, N, T] per layer with a memory
    controls: list[Tensor] = field(default_factory=list)  # [memories, N, T, n] per layer with a memory
    mixes: list[Tensor | None] = field(default_factory=list)  # lambda [H] per layer with a memory, if it has one
    gates: list[Tensor | None] = field(default_factory=list)  # [B, T, D] per layer with a memory, if it has a gate
    sharpness: list[Tensor] = field(default_factory=list)  # of the gate, per layer with a memory
    after: ModelState | None = None


@contextmanager
def catching(model: AtlasModel) -> Iterator[Catch]:
    """Catch the first forward pass inside the context, without its graph."""
    catch = Catch()
    memories = [block.memory for block in model.mag_blocks if block.memory is not None]
    gates = [block.gate for block in model.mag_blocks if block.gate is not None]  # where there is a memory

    def take_start(memory: AtlasMemory, arguments: tuple[Any, ...]) -> None:
        if len(catch.starts) < len(memories):  # here its weights are whole, see parallel/slices.py
            catch.starts.append(_start(memory, arguments[1]))
            catch.mixes.append(None if memory.mix is None else memory.mix.detach().clone())

    def take_state(_: nn.Module, __: Any, output: ModelOutput | Reading) -> None:
        if catch.after is None:
            catch.after = output.state.detach()
            catch.gates = [gate.detach() for gate in output.gates] or [None] * len(memories)

    def take_inputs(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if len(catch.queries) < len(memories):
            assert isinstance(module, MemoryInputs)
            catch.queries.append(output[0].query[:, -QUERIES:].detach().float().clone())
            catch.keys.append(output[0].key.detach())
            catch.values.append(output[0].value[:, -QUERIES:].detach().clone())
            with torch.no_grad():
                catch.rates.append(module.rates(arguments[0]))

    def take_controls(_: nn.Module, __: Any, output: Tensor) -> None:
        if len(catch.controls) < len(memories):
            catch.controls.append(output.detach())

    def take_sharpness(gate: nn.Module, *_: Any) -> None:
        if len(catch.sharpness) < len(gates):
            assert isinstance(gate, Gate)
            catch.sharpness.append(gate.log_sharpness.detach().view(()).exp())

    handles = [gate.register_forward_hook(take_sharpness) for gate in gates]
    handles += [memory.inputs.register_forward_hook(take_inputs) for memory in memories]
    handles += [memory.controls.register_forward_hook(take_controls) for memory in memories]
    handles += [memory.register_forward_pre_hook(take_start) for memory in memories]
    handles.append(model.register_forward_hook(take_state))
    try:
        yield catch
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def memory_norms(model: AtlasModel, catch: Catch) -> dict[str, float | None]:
    """Metrics `memory/layer<i>/...`, each a mean over rows at the end of the step's first forward pass; None for what
    is not finite. With `train.accumulate` that pass is the first micro-batch alone, and of a batch of `data=mixed` it
    may hold recall rows only, which come first. The watchers of the memory see no more.

    <which> is `global` or `local<j>`; weight norms are Frobenius norms of W1, W2 and W3 together.

        <which>/weight_norm      of the weights, the open chunk's writes included
        <which>/update_norm      of the writes since the start of the shard; of the sequence for the global memory
        <which>/write_ratio      that norm over the norm of the weights at that start: of W_init, where none are carried
        <which>/rate             mean inner rate of the tokens, before the limits of the curvature
        <which>/<gate>           mean of a learnt gate of the rule: theta, forget (1 - alpha), rho, gamma
        <which>/momentum_norm    of S, if the rule has momentum
        local<j>/query_norm      ||q'|| before renormalisation, of the last queries with the final sums
        query_cosine             mean cosine between projections of different queries: near 1 they have collapsed
        query_cosine_raw         the control: the same of the queries themselves
        lambda                   mean weight of q' in the queries q + lambda q' of the local memories, with `mix`
        gate_mean                of the block's gates, if it has any
        gate_sharpness           of these gates
    """
    if catch.after is None:
        return {}
    found: dict[str, Tensor] = {}
    tokens = catch.queries, catch.rates, catch.controls, catch.mixes, catch.gates, catch.sharpness
    caught = iter(zip(catch.starts, *tokens, strict=True))
    for index, (block, after) in enumerate(zip(model.mag_blocks, catch.after.blocks, strict=True)):
        if block.memory is None or after.memory is None:
            continue
        start, query, rates, controls, mix, gates, sharpness = next(caught)
        values = _weights(block.memory, start, after.memory, rates, controls)
        values |= _queries(block.memory, query, after.memory)
        values |= {} if gates is None else {"gate_mean": gates.float().mean(), "gate_sharpness": sharpness}
        values |= {} if mix is None else {"lambda": mix.mean()}
        found |= {f"memory/layer{index}/{name}": value for name, value in values.items()}
    if not found:
        return {}
    numbers = torch.stack([value.float() for value in found.values()]).tolist()  # one device synchronisation
    return {name: number if isfinite(number) else None for name, number in zip(found, numbers, strict=True)}


@torch.no_grad()
def _start(memory: AtlasMemory, before: MemoryState) -> Starts:
    return Starts(
        [_copy(written(memory.global_rule, scan, memory.config.curvature_max)) for scan in before.global_memory],
        [_copy(init(1, memory.heads).start) for init in memory.local],
    )


def _copy(weights: FastWeights) -> FastWeights:
    return FastWeights(weights.down.detach().clone(), weights.up.detach().clone())


def _weights(
    memory: AtlasMemory, starts: Starts, after: MemoryState, rates: Tensor, controls: Tensor
) -> dict[str, Tensor]:
    """`rates` [memories, N, T], `controls` [memories, N, T, n]: the global one last."""
    names = [("global", memory.global_rule)] * len(after.global_memory)
    names += [(f"local{index}", memory.rule) for index in range(len(after.local))]
    in_order = rates.mean((1, 2)).roll(len(after.global_memory))
    gates = controls.mean((1, 2)).roll(len(after.global_memory), 0)  # [memories, n]
    scans, origins = (*after.global_memory, *after.local), (*starts.global_memory, *starts.local)
    found: dict[str, Tensor] = {}
    for (name, rule), scan, start, rate, gate in zip(names, scans, origins, in_order, gates, strict=True):
        weights = written(rule, scan, memory.config.curvature_max)
        heads = [
            matrix.repeat(end.shape[0] // matrix.shape[0], 1, 1) for matrix, end in zip(start, weights, strict=True)
        ]
        before = FastWeights(*heads)
        update = _norms(subtract(weights, before))
        found[f"{name}/weight_norm"] = _norms(weights).mean()
        found[f"{name}/update_norm"] = update.mean()
        found[f"{name}/write_ratio"] = (update / _norms(before)).mean()
        found[f"{name}/rate"] = rate
        learnt = [(one, mean) for one, mean in zip(rule.controls, gate, strict=True) if not one.fixed]
        found |= {f"{name}/{one.name.replace(' ', '_')}": mean for one, mean in learnt}
        if momentum := getattr(scan.kept, "momentum", None):
            found[f"{name}/momentum_norm"] = _norms(momentum).mean()
    return found


def _norms(weights: FastWeights) -> Tensor:
    """Frobenius norm of both matrices together, of each row [N]."""
    squares = [matrix.float().square().sum((-2, -1)) for matrix in weights]
    return torch.stack(squares).sum(0).sqrt()


def _queries(memory: AtlasMemory, query: Tensor, after: MemoryState) -> dict[str, Tensor]:
    """Of queries [N, n, d], projected with the final sums: one q' for all local memories, or one each."""
    found = {"query_cosine_raw": _cosine(query, query)}
    if not after.sums:
        return found
    projected = [project_queries(sums, query, per_key=memory.projector.per_key) for sums in after.sums]
    for index in range(len(after.local)):
        found[f"local{index}/query_norm"] = projected[index % len(projected)].norm(dim=-1).mean()
    found["query_cosine"] = torch.stack([_cosine(one, query) for one in projected]).mean()
    return found


def project_queries(sums: Accumulator, query: Tensor, *, per_key: bool) -> Tensor:
    """q' = M q / norm, or M q."""
    projected = query @ sums.matrix.float()  # M is symmetric
    return projected if per_key else projected / sums.norm.float().clamp(min=EPSILON)[:, None, None]


def _cosine(vectors: Tensor, queries: Tensor) -> Tensor:
    """Mean cosine between vectors [N, n, d] of a row whose queries differ; NaN if all queries are the same."""
    unit = F.normalize(vectors, dim=-1)
    different = queries @ queries.mT < SAME
    return (unit @ unit.mT)[different].mean()
