"""Level `memory`: does the memory's own learning rule store a pair, and keep it while more is written?

Legend: B draws, n haystack tokens, H heads, N = B * H rows, d head width.

A unit pair (k, v) is written into the model's own fast weights, starting from its W_init, on its own chunk plan, by its
own forward pass: only keys, values and inner rates are put in place of those that it would compute. n tokens are
written after it. The memory is then read with k.

What is compared. f(x) = x + MLP(x) is trained towards f(k) = v, so what the weights have to learn is v - f(k; W_init).
The accuracy is the cosine between that and what they did learn, f(k; W) - f(k; W_init). The plain cosine of f(k; W)
with v is reported too; it mixes in how far one bounded step at the highest rate can go: about 0.8 at most.

Which rates. The needle is written at `rate_max`, as a token that the model wants to keep; the haystack at the model's
own rates: on text at those of the very tokens, on random keys at their mean over text. Whether the model also gives a
needle a high rate is a matter of the level `recall`.

The control. Another random pair is written in the needle's place, at the same rate, and the memory is read with k all
the same. (A needle at rate 0 would be no control: with a window its successors write it, at their rates.) What is left
comes from -k in v - f(k; W_init): every pair moves f(k) a little away from k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isnan

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import NIAHConfig
from atlas.models.memory import MemoryState
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.ops.chunk_scan import ScanState, written
from atlas.ops.fast_weights import FastWeights, read
from atlas.ops.rules.rule import LearningRule
from atlas.probes.keys import MemoryLayer, SeenTokens, memory_layers, substituted, unit_vectors
from atlas.probes.result import NIAHResult, ProbeCell, judge
from atlas.probes.subject import Place, Subject

LEVEL = "memory"
TOLERANCE = 1e-4
CHANCE = 0.0  # mean cosine of random directions
EPSILON = 1e-12


@dataclass(frozen=True)
class ReadBack:
    """Results for one memory of one layer under one haystack."""

    memory: str  # "local 16", "global 128": its chunk
    haystack: str
    length: int  # haystack tokens
    cosine: Tensor  # [N]
    control: Tensor  # [N] the same after another pair
    plain: Tensor  # [N] cosine of f(k; W) with v


def probe_memory(subject: Subject) -> NIAHResult:
    """Judged on random keys, by the memory that keeps the needle worst."""
    model, settings, step = subject.model, subject.settings, subject.step
    if not memory_layers(model):
        return judge(step=step, level=LEVEL, threshold=settings.threshold, missing="the model has no memory")
    rng, control_rng = subject.rng(Place.memory), subject.rng(Place.memory_control)
    texts, text_name = subject.seen
    readings: list[ReadBack] = []
    faults: set[str] = set()
    for layer, seen in zip(memory_layers(model), texts, strict=True):
        draws = max(1, settings.samples // layer.heads)
        shape = (draws, 1, layer.heads, layer.head_width)
        key, value = (unit_vectors(rng, shape, seen.key) for _ in range(2))
        other_key, other_value = (unit_vectors(control_rng, shape, seen.key) for _ in range(2))
        for name in ("random keys", f"keys of {text_name}"):
            hay = seen.repeat(draws)
            if name == "random keys":
                hay = _random_like(hay, rng)
            led, led_by_other = _lead(hay, key, value), _lead(hay, other_key, other_value)
            readings += _read_layer(layer, model.plan, settings.haystack, name, led, led_by_other)
        faults |= _faults(layer, model.plan, _lead(seen.repeat(draws), key, value))
    return _result(settings, step, readings, sorted(faults))


def _random_like(seen: SeenTokens, rng: np.random.Generator) -> SeenTokens:
    """Random unit keys and values, at the mean rates of the text."""
    key, value = (unit_vectors(rng, seen.key.shape, seen.key) for _ in range(2))
    mean = torch.sigmoid(seen.rate_logits.float()).mean((0, 1), keepdim=True)
    logits = torch.logit(mean).to(seen.rate_logits).expand_as(seen.rate_logits)
    return replace(seen, key=key, value=value, rate_logits=logits)


def _lead(haystack: SeenTokens, key: Tensor, value: Tensor) -> SeenTokens:
    """The haystack with the needle [B, 1, H, d] as its first token, at the highest rate."""
    keys, values = torch.cat((key, haystack.key[:, 1:]), dim=1), torch.cat((value, haystack.value[:, 1:]), dim=1)
    return replace(haystack, key=keys, value=values).with_rate_logit(0, inf)


def _initial(layer: MemoryLayer, plan: ChunkPlan, batch: int) -> MemoryState:
    return layer.memory.initial_state(batch, layer.persistent, plan)


def _write(layer: MemoryLayer, plan: ChunkPlan, tokens: SeenTokens) -> MemoryState:
    """The state of the model's own memory after these tokens, from the start of a shard on."""
    memory, initial = layer.memory, _initial(layer, plan, tokens.key.shape[0])
    with substituted(layer, tokens):
        _, state = memory(tokens.x, initial, 0, layer.persistent, plan, MemoryMode.learn)
    after: MemoryState = state
    return after


def _read_layer(
    layer: MemoryLayer, plan: ChunkPlan, haystack: int, name: str, tokens: SeenTokens, other: SeenTokens
) -> list[ReadBack]:
    """Local memories after the haystack or at the end of the shard; the global one at the end of its chunk.

    `other`: the same tokens with another needle.
    """
    batch = tokens.key.shape[0]
    short = min(haystack + 1, plan.shard or haystack + 1)
    long = -(-(haystack + 1) // plan.global_size) * plan.global_size
    initial = _initial(layer, plan, batch)
    readings = []
    for length, kind in ((short, "local"), (long, "global")):
        if kind == "global" and not initial.global_memory:
            continue
        part = tokens.part(0, length)
        after, control = _write(layer, plan, part), _write(layer, plan, other.part(0, length))
        if kind == "local":
            states = zip(plan.local, initial.local, after.local, control.local, strict=True)
        else:
            chunks = (plan.global_size,)
            states = zip(chunks, initial.global_memory, after.global_memory, control.global_memory, strict=True)
        for chunk, empty, with_needle, with_other in states:
            rule = layer.memory.rule if kind == "local" else layer.memory.global_rule
            measured = [_cosines(layer, rule, part, empty, state) for state in (with_needle, with_other)]
            readings.append(
                ReadBack(f"{kind} {chunk}", name, length - 1, measured[0][0], measured[1][0], measured[0][1])
            )
    return readings


def _cosines(
    layer: MemoryLayer, rule: LearningRule, tokens: SeenTokens, empty: ScanState, full: ScanState
) -> tuple[Tensor, Tensor]:
    """Of what was learnt about the needle with what there was to learn, and of f(k; W) with v: [N] each."""
    key, value = (field[:, :1].transpose(1, 2).flatten(0, 1) for field in (tokens.key, tokens.value))  # [N, 1, d]
    features = layer.memory.features(key)
    weights = written(rule, full, layer.memory.config.curvature_max)
    before, now = (read(one, key, features) for one in (empty.start, weights))
    learnt = F.cosine_similarity(now - before, value - before, dim=-1, eps=EPSILON)
    return learnt.squeeze(-1), F.cosine_similarity(now, value, dim=-1).squeeze(-1)


def _faults(layer: MemoryLayer, plan: ChunkPlan, tokens: SeenTokens) -> set[str]:
    """Checks that something is written, and that the local memories have forgotten it after a shard boundary.

    The token after the boundary, its rate 0, must leave them as it leaves memories that have seen nothing else.
    """
    faults, rule = set(), layer.memory.rule
    length = plan.shard or 1
    full = _write(layer, plan, tokens.part(0, length))
    initial = _initial(layer, plan, tokens.key.shape[0])
    beyond = tokens.part(0, length + 1).with_rate_logit(length, -inf)
    after, fresh = _write(layer, plan, beyond), _write(layer, plan, beyond.part(length, length + 1))
    for chunk, *states in zip(plan.local, initial.local, full.local, after.local, fresh.local, strict=True):
        before, holding, reset, wanted = (written(rule, state, 0.0) for state in states)
        change = _distance(holding, before)
        if change == 0:
            faults.add(f"the local memory of chunk {chunk} is not written at all")
        elif plan.shard and _distance(reset, wanted) > TOLERANCE * change:
            faults.add(f"the local memory of chunk {chunk} is not back at W_init after a shard boundary")
    limit = layer.memory.config.curvature_max
    for empty, held in zip(initial.global_memory, full.global_memory, strict=True):
        if _distance(written(layer.memory.global_rule, held, limit), empty.start) == 0:
            faults.add("the global memory is not written at all")
    return faults


def _distance(one: FastWeights, other: FastWeights) -> float:
    return float(torch.cat([(a - b).flatten() for a, b in zip(one, other, strict=True)]).norm())


def _result(settings: NIAHConfig, step: int, readings: Sequence[ReadBack], faults: Sequence[str]) -> NIAHResult:
    """Judged on random keys, by the memory that keeps the needle worst."""
    cells, details = [], {}
    for memory, name in dict.fromkeys((reading.memory, reading.haystack) for reading in readings):
        own = [reading for reading in readings if (reading.memory, reading.haystack) == (memory, name)]
        cell = ProbeCell(
            memory,
            name,
            own[0].length,
            accuracy=float(torch.cat([reading.cosine for reading in own]).mean()),
            control=float(torch.cat([reading.control for reading in own]).mean()),
            samples=sum(reading.cosine.numel() for reading in own),
        )
        cells.append(cell)
        details[f"plain {memory} {name}"] = float(torch.cat([reading.plain for reading in own]).mean())
    judged = [cell for cell in cells if cell.haystack == "random keys"]
    worst = min(judged, key=lambda cell: -inf if cell.accuracy is None or isnan(cell.accuracy) else cell.accuracy)
    return judge(
        step=step,
        level=LEVEL,
        threshold=settings.threshold,
        accuracy=worst.accuracy,
        control=worst.control,
        chance=CHANCE,
        faults=faults,
        cells=cells,
        details=details,
    )
