"""What watchers need from model, optimiser and batch.

The model is measured at a few steps, from what hooks keep of the step's own forward pass (`Catch`).

Legend: B sequences, T tokens, H heads, N = B * H rows, d head width, C tokens of a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.models.language_model import AtlasModel
from atlas.models.memory import AtlasMemory, MemoryState
from atlas.models.plan import ChunkPlan
from atlas.ops.chunk_scan import written
from atlas.ops.curvature import causally_damped
from atlas.ops.fast_weights import FastWeights, norm_limits, read
from atlas.ops.unit_rows import unit_rows
from atlas.parallel.ranks import ALONE, Ranks
from atlas.training.memory_norms import SAME, Catch, CaughtLayer, project_queries
from atlas.training.watchers.observations import Measured

EVERY = 100  # steps between two measurements
FIRST = (10, 50)  # and these: a short run has some as well
ROWS, TOKENS = 16, 2048  # of a batch whose keys are compared with each other
CROWD = 4.0  # sum of the rates of equal keys in a chunk; from 4 to 8 on float32 gradients are wrong (docs/memory.md 4)
AT_BOUND = 0.99  # of the norm bound


def due(step: int) -> bool:
    return step % EVERY == 0 or step in FIRST


@torch.no_grad()
def moved_elements(before: Mapping[str, Tensor], model: AtlasModel, ranks: Ranks = ALONE) -> Tensor:
    """How many elements of each parameter are not as `before`, the weights that `copied` gave.

    By rank 0 alone, or by all ranks if they have slices."""
    counts = [(ranks.own(parameter) != before[name]).sum() for name, parameter in model.named_parameters()]
    return ranks.sum_of_slices(torch.stack(counts).double())


@torch.no_grad()
def descent(
    before: Mapping[str, Tensor], gradients: Mapping[str, Tensor], model: AtlasModel, ranks: Ranks = ALONE
) -> float | None:
    """Cosine between the step from `before` to the weights now, and minus the gradients.

    By rank 0 alone, or by all ranks if they have slices. None where nothing has moved."""
    sums = []
    for name, parameter in model.named_parameters():
        moved = (ranks.own(parameter) - before[name]).float()
        gradient = gradients[name].float() if name in gradients else torch.zeros_like(moved)
        sums.append(torch.stack(((moved * gradient).sum(), moved.square().sum(), gradient.square().sum())))
    product, moves, slopes = ranks.sum_of_slices(torch.stack(sums).double().sum(0)).tolist()
    return -product / sqrt(moves * slopes) if moves * slopes > 0 else None


@torch.no_grad()
def measure(step: int, model: AtlasModel, catch: Catch, moved: Tensor, norms: Mapping[str, float | None]) -> Measured:
    """After a step whose first forward pass was caught.

    `moved`: the counts of `moved_elements`. `norms`: what `memory_norms` gave; the norms of updates are taken over.
    """
    found = _of_memories(model, catch)
    numbers = torch.cat([moved, *(one.double().view(1) for one in found.values())]).tolist()  # one wait
    counts = dict(zip((name for name, _ in model.named_parameters()), numbers, strict=False))
    values = dict(zip(found, numbers[len(counts) :], strict=True))
    for key, norm in norms.items():
        if key.endswith("/update_norm") and norm is not None:
            memory = key.removesuffix("/update_norm")
            values[key.removeprefix("memory/")] = norm
            written_share, after = norms.get(f"{memory}/write_ratio"), norms.get(f"{memory}/weight_norm")
            if norm and written_share and after is not None:  # their norm at the start is norm / written_share
                values[f"{memory.removeprefix('memory/')}/kept"] = after * written_share / norm
    elements = sum(parameter.numel() for parameter in model.parameters())
    return Measured(
        step, values, [name for name, count in counts.items() if count == 0], 1 - sum(counts.values()) / elements
    )


def _of_memories(model: AtlasModel, catch: Catch) -> dict[str, Tensor]:
    """Per memory: rate_max, crowded, path, at_bound. Per layer: gate_mean and gate_varies, where
    it has a gate, and directions."""
    found: dict[str, Tensor] = {}
    for one in catch.layers if catch.complete else ():
        values = _of_writes(one)
        if "rho" in _names(one.memory):
            values |= _paths(one.memory, one.controls, model.plan)
        else:
            values |= _crowds(one.memory, one.key, one.rates, one.controls, model.plan.local)
        values |= _learned(one, model.plan)
        values |= _directions_of(one.query, one.key[:, -one.query.shape[1] :], one.value)
        if one.after.sums:
            values["read_directions"] = _of_reads(one.memory, one.after, one.query, one.mix)
        if one.gate is not None:
            channels = one.gate.float().flatten(0, 1)  # [B * T, D]
            values |= {"gate_mean": channels.mean(), "gate_varies": channels.std(dim=0).mean()}
        found |= {f"layer{one.layer}/{name}": number for name, number in values.items()}
    return found


def _names(memory: AtlasMemory) -> list[str]:
    """Of the rule's controls."""
    return [control.name for control in memory.rule.controls]


def _of_writes(caught: CaughtLayer) -> dict[str, Tensor]:
    memory, found = caught.memory, dict[str, Tensor]()
    for index, (name, rule, scan) in enumerate(caught.scans):
        found[f"{name}/rate_max"] = caught.rates[index].max()
        weights = written(rule, scan, memory.config.curvature_max)
        full = [
            matrix.float().norm(dim=(-2, -1)) >= AT_BOUND * limit
            for matrix, limit in zip(weights, norm_limits(weights, memory.config.weight_norm_max), strict=True)
        ]
        found[f"{name}/at_bound"] = torch.stack(full).any(dim=0).float().mean()
    return found


def _crowds(
    memory: AtlasMemory, key: Tensor, rates: Tensor, controls: Tensor, chunks: tuple[int, ...]
) -> dict[str, Tensor]:
    """Of the local memories; key [N, T, d], rates [memories, N, T], controls [memories, N, T, n]. With momentum a write
    comes again in the chunks after it, eta / (1 - theta) in all."""
    names, limit = _names(memory), memory.config.curvature_max_local
    theta = controls[..., names.index("theta")] if "theta" in names else torch.zeros_like(rates)
    found: dict[str, Tensor] = {}
    for index, chunk in enumerate(chunks):
        if key.shape[1] < chunk:
            continue
        keys, eta, again = (_chunks(field, chunk) for field in (key, rates[index], theta[index]))
        if limit:
            eta = causally_damped(keys, eta, limit)
        found[f"local{index}/crowded"] = _crowded(keys, eta / (1 - again))
    return found


def _paths(memory: AtlasMemory, controls: Tensor, plan: ChunkPlan) -> dict[str, Tensor]:
    """Of rules whose steps have a length of their own, rho: its sum over the chunks of a shard, of the sequence for the
    global memory, in the row where it is largest. `controls` [memories, N, T, n]."""
    rho, total = controls[..., _names(memory).index("rho")].float(), controls.shape[2]
    shard = min(plan.shard or total, total)
    chunks = [(f"local{index}", shard / chunk) for index, chunk in enumerate(plan.local)]
    chunks += [("global", total / plan.global_size)] * memory.config.use_global
    means = rho.mean(-1).amax(-1)  # [memories]
    return {f"{name}/path": mean * count for (name, count), mean in zip(chunks, means, strict=True)}


def _learned(caught: CaughtLayer, plan: ChunkPlan) -> dict[str, Tensor]:
    """Of the keys that each memory has written last: the cosine between how its writes changed what it recalls, and
    how they should. Below 0 they lead away."""
    memory, value, chunks = caught.memory, caught.value, (*plan.local, plan.global_size)
    key = caught.key[:, -value.shape[1] :]
    found: dict[str, Tensor] = {}
    for index, ((name, rule, scan), before) in enumerate(zip(caught.scans, caught.start, strict=True)):
        last = min(chunks[index], key.shape[1])
        of = key[:, -last:].float(), value[:, -last:].float(), caught.rates[index][:, -last:].float()
        rows = [matrix.repeat(len(key) // len(matrix), 1, 1) for matrix in before]
        weights = written(rule, scan, memory.config.curvature_max)
        found[f"{name}/learned"] = _way(memory, FastWeights(*rows), weights, *of)
    return found


def _way(
    memory: AtlasMemory, before: FastWeights, after: FastWeights, key: Tensor, value: Tensor, rate: Tensor
) -> Tensor:
    features = memory.features(key)
    recalled, start = (read(weights, key, features) for weights in (after, before))
    weight = rate.sqrt()[..., None]
    return F.cosine_similarity(((recalled - start) * weight).flatten(), ((value - start) * weight).flatten(), dim=0)


def _chunks(field: Tensor, chunk: int) -> Tensor:
    """[N, T, ...] -> whole chunks of the first rows and tokens [N, n, C, ...]."""
    tokens = min(field.shape[1], TOKENS) // chunk * chunk
    found: Tensor = field[:ROWS, :tokens].float().unflatten(1, (-1, chunk))
    return found


def _crowded(keys: Tensor, rates: Tensor) -> Tensor:
    """Share of chunks with a key whose equals have rates that add up to more than CROWD: [N, n, C, d], [N, n, C]."""
    equal = keys @ keys.mT > SAME
    sums = (equal * rates[..., None, :]).sum(-1)
    share: Tensor = (sums.amax(-1) > CROWD).float().mean()
    return share


def _directions_of(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
    """Of the last tokens, each [N, n, d]."""
    named = {"query": query, "key": key, "value": value}
    return {f"{name}_directions": directions(vectors) for name, vectors in named.items()}


def _of_reads(memory: AtlasMemory, after: MemoryState, query: Tensor, mix: Tensor | None) -> Tensor:
    """The directions of the queries with which the local memories read; query [N, n, d], mix [H]."""
    found: list[Tensor] = []
    for sums in after.sums:
        read = unit_rows(project_queries(sums, query, per_key=memory.projector.per_key))
        if mix is not None:
            read = query + mix.repeat(query.shape[0] // memory.heads)[:, None, None] * read
        found.append(directions(read))
    return torch.stack(found).mean()


def directions(vectors: Tensor) -> Tensor:
    """1 / mean of cosine^2 over the pairs of vectors [N, n, d] of a row: d for random vectors, k for vectors on k lines
    at right angles, 1 on one line, which may point both ways."""
    unit = unit_rows(vectors.float())
    n = vectors.shape[1]
    squares = (unit @ unit.mT).square().sum((-2, -1)) - n
    mean: Tensor = squares.mean() / max(n * (n - 1), 1)
    return 1 / mean.clamp(min=1e-6)


def memory_sizes(device: torch.device) -> dict[str, int]:
    """Bytes of the process without pages of files, and of tensors on its device; {} where there is no /proc."""
    found: dict[str, int] = {}
    with suppress(OSError):
        _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
        found["the process"] = (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    if device.type == "cuda":
        found["the device"] = torch.cuda.memory_allocated(device)
    return found
