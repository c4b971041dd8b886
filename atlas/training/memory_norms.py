"""Metrics of the memories after a training step: norms of weights, momentum and queries, inner rates and gates.

Hooks on the step's own forward pass keep references and change nothing. So the losses of a run do not depend on how
often it logs.

Legend: B sequences, T tokens, H heads, N = B * H rows, d head width, n queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from atlas.models.gate import Gate
from atlas.models.language_model import AtlasModel, ModelOutput, Reading
from atlas.models.memory import AtlasMemory, MemoryState
from atlas.models.memory_inputs import MemoryInputs, MemoryTokens
from atlas.ops.chunk_scan import ScanState, written
from atlas.ops.fast_weights import FastWeights, subtract
from atlas.ops.qk_projection import EPSILON, Accumulator
from atlas.ops.rules.rule import LearningRule

QUERIES = 64  # the last ones of a row: enough for a mean cosine, at no measurable cost
SAME = 0.99  # queries of a higher cosine count as one query: runs of blanks give many of them


@dataclass
class CaughtLayer:
    """What the hooks keep of a layer with a memory. Its memories are in one order: the local ones, then the global one.

    `start`: copies of the weights that they started from, since the optimiser changes W_init in place.
    """

    layer: int
    memory: AtlasMemory
    start: list[FastWeights] = field(init=False)  # [H, ...] W_init, or [N, ...] of a global memory that is carried
    mix: Tensor | None = field(init=False)  # lambda [H]; None without `mix`
    query: Tensor = field(init=False)  # [N, n, d] unit norm
    key: Tensor = field(init=False)  # [N, T, d] unit norm
    value: Tensor = field(init=False)  # [N, n, d]
    rates: Tensor = field(init=False)  # [memories, N, T]
    controls: Tensor = field(init=False)  # [memories, N, T, n]
    gate: Tensor | None = field(init=False)  # [B, T, D]; None with the fusion `additive`
    sharpness: Tensor = field(init=False)  # of the gate
    after: MemoryState = field(init=False)

    @property
    def scans(self) -> list[tuple[str, LearningRule, ScanState]]:
        """Name, rule and state after the pass of each memory."""
        local = [(f"local{index}", self.memory.rule, scan) for index, scan in enumerate(self.after.local)]
        return local + [("global", self.memory.global_rule, scan) for scan in self.after.global_memory]


@dataclass
class Catch:
    """What the hooks keep of the first forward pass of a step."""

    layers: list[CaughtLayer] = field(default_factory=list)
    complete: bool = False  # the pass has ended


@contextmanager
def catching(model: AtlasModel) -> Iterator[Catch]:
    """Catch the first forward pass inside the context, without its graph."""
    catch = Catch()
    with ExitStack() as hooks:

        def on(handle: RemovableHandle) -> None:
            hooks.callback(handle.remove)

        for layer, block in enumerate(model.mag_blocks):
            if block.memory is not None and block.gate is not None:
                one = CaughtLayer(layer, block.memory)
                catch.layers.append(one)
                on(block.memory.register_forward_pre_hook(partial(_take_start, one)))
                on(block.memory.inputs.register_forward_hook(partial(_take_inputs, one)))
                on(block.memory.controls.register_forward_hook(partial(_take_controls, one)))
                on(block.gate.register_forward_hook(partial(_take_sharpness, one)))

        def take_state(_: nn.Module, __: Any, output: ModelOutput | Reading) -> None:
            after, gates = output.state.detach(), output.gates or [None] * len(catch.layers)
            for one, gate in zip(catch.layers, gates, strict=True):
                memory = after.blocks[one.layer].memory
                assert memory is not None
                one.after, one.gate = memory, None if gate is None else gate.detach()
            catch.complete = True
            hooks.close()  # the first pass has ended

        on(model.register_forward_hook(take_state))
        yield catch


def _take_start(caught: CaughtLayer, memory: AtlasMemory, arguments: tuple[Any, ...]) -> None:
    """Here the weights of the memory are whole, see parallel/slices.py."""
    caught.start = _start(memory, arguments[1])
    caught.mix = None if memory.mix is None else memory.mix.detach().clone()


def _take_inputs(
    caught: CaughtLayer, inputs: MemoryInputs, arguments: tuple[Any, ...], output: tuple[MemoryTokens, Any]
) -> None:
    tokens, _ = output
    caught.query = tokens.query[:, -QUERIES:].detach().float().clone()
    caught.key = tokens.key.detach()
    caught.value = tokens.value[:, -QUERIES:].detach().clone()
    with torch.no_grad():
        caught.rates = inputs.rates(arguments[0])


def _take_controls(caught: CaughtLayer, _: nn.Module, __: Any, output: Tensor) -> None:
    caught.controls = output.detach()


def _take_sharpness(caught: CaughtLayer, gate: Gate, *_: Any) -> None:
    caught.sharpness = gate.log_sharpness.detach().view(()).exp()


@torch.no_grad()
def memory_norms(catch: Catch) -> dict[str, float | None]:
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
    found: dict[str, Tensor] = {}
    for one in catch.layers if catch.complete else ():
        values = _weights(one) | _queries(one.memory, one.query, one.after)
        if one.gate is not None:
            values |= {"gate_mean": one.gate.float().mean(), "gate_sharpness": one.sharpness}
        if one.mix is not None:
            values["lambda"] = one.mix.mean()
        found |= {f"memory/layer{one.layer}/{name}": value for name, value in values.items()}
    if not found:
        return {}
    numbers = torch.stack([value.float() for value in found.values()]).tolist()  # one device synchronisation
    return {name: number if isfinite(number) else None for name, number in zip(found, numbers, strict=True)}


@torch.no_grad()
def _start(memory: AtlasMemory, before: MemoryState) -> list[FastWeights]:
    starts = [init(1, memory.heads).start for init in memory.local]
    starts += [written(memory.global_rule, scan, memory.config.curvature_max) for scan in before.global_memory]
    return [FastWeights(*(matrix.detach().clone() for matrix in start)) for start in starts]


def _weights(caught: CaughtLayer) -> dict[str, Tensor]:
    rates, gates, local = caught.rates.mean((1, 2)), caught.controls.mean((1, 2)), len(caught.after.local)
    memories = list(zip(caught.scans, caught.start, rates, gates, strict=True))
    found: dict[str, Tensor] = {}
    for (name, rule, scan), start, rate, gate in memories[local:] + memories[:local]:  # the global one first
        weights = written(rule, scan, caught.memory.config.curvature_max)
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
