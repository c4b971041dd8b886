"""Level `accumulator`: does the Q-K accumulator return a stored pair, at the right size, and lose it at a reset?

Legend: B draws, n haystack keys, H heads, P persistent keys, d head width, p feature width.

A unit key/value pair is injected, buried under n keys, and asked for with the key: cosine with the value. With
random unit keys and features phi(x).phi(y) = (x.y)^degree, N = n + P keys disturb it with (k_i.k)^degree each, so that

    cosine = 1 / sqrt(1 + N E[(x.y)^(2 degree)]),     E[(x.y)^2] = 1/d,   E[(x.y)^4] = 3 / (d (d + 2))

At degree 1 the haystack, whose values are its keys, also pulls every query towards itself: N (N - 1) / d^2 joins the
sum under the root. The degree-1 measurement of the plan is always reported with its expectation, whatever is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import NIAHConfig, Normalisation, ProjectionRange
from atlas.models.language_model import AtlasModel
from atlas.models.plan import ChunkPlan
from atlas.models.qk_projection import QKProjection
from atlas.ops.qk_projection import EPSILON
from atlas.probes.keys import MemoryLayer, memory_layers, unit_vectors
from atlas.probes.result import NIAHResult, ProbeCell, judge
from atlas.probes.subject import Place, Subject

LEVEL = "accumulator"
TOLERANCE = 1e-3  # relative; float32 round-off stays below 1e-5
CHANCE = 0.0  # mean cosine of random directions


@dataclass
class Readings:
    """Of one kind of features under one kind of haystack."""

    cosine: Tensor  # [B, H]
    control: Tensor  # [B, H] the same without the needle
    scale: float  # length of what comes back over the algebraic one; the cosine does not show it
    leftover: float  # after a reset, relative deviation from what the persistent keys alone give


def expected_cosine(keys: int, head_width: int, degree: int) -> float:
    """Expected cosine if the haystack's random unit keys disturb the needle independently of each other."""
    d = head_width
    return 1 / sqrt(1 + keys * (1 / d if degree == 1 else 3 / (d * (d + 2))))


def coherent_cosine(keys: int, head_width: int) -> float:
    """Degree 1 with the haystack's keys as its values: the formula above and their common pull."""
    return 1 / sqrt(1 + keys / head_width + keys * (keys - 1) / head_width**2)


def reference_read(query: Tensor, keys: Tensor, values: Tensor, degree: int, per_key: bool) -> Tensor:
    """sum_i v_i (k_i . q)^degree over the norm, straight from pairs [B, n, H, d]: query [B, H, d] -> [B, H, d]."""
    weight = torch.einsum("bnhd,bhd->bnh", keys, query) ** degree
    square = keys.square().sum(-1) ** degree
    if per_key:
        return torch.einsum("bnh,bnhd->bhd", weight / square.clamp(min=EPSILON), values)
    return torch.einsum("bnh,bnhd->bhd", weight, values) / square.sum(1).clamp(min=EPSILON).unsqueeze(-1)


def probe_accumulator(subject: Subject) -> NIAHResult:
    """Judged on random keys at `accumulator_degree`; the keys that each layer computes from text are measured too."""
    model, settings, step = subject.model, subject.settings, subject.step
    layers = memory_layers(model)
    if not layers:
        return judge(step=step, level=LEVEL, threshold=settings.threshold, missing="the model has no memory")
    rng, (texts, text_name) = subject.rng(Place.accumulator), subject.seen
    draws = {layer.index: max(1, settings.samples // layer.heads) for layer in layers}
    readings: dict[tuple[str, int], list[Readings]] = {}
    faults: set[str] = set()
    for position, layer in enumerate(layers):
        shape = (draws[layer.index], layer.heads, layer.head_width)
        needle = [unit_vectors(rng, shape, layer.persistent.keys) for _ in range(4)]
        hays = {"random keys": unit_vectors(rng, (shape[0], settings.haystack, *shape[1:]), layer.persistent.keys)}
        hays[f"keys of {text_name}"] = texts[position].repeat(shape[0]).key[:, 1 : settings.haystack + 1]
        for name, hay in hays.items():
            for degree in sorted({1, settings.accumulator_degree}):
                reading = _read(layer, needle, hay, degree)
                readings.setdefault((name, degree), []).append(reading)
                faults |= _faults(reading)
        faults |= _parallel_faults(layer, model.plan, hays["random keys"][:1])
    return _result(model, settings, step, readings, sorted(faults))


def _read(layer: MemoryLayer, needle: Sequence[Tensor], haystack: Tensor, degree: int) -> Readings:
    """Fill an earlier shard, reset, write the needle, write the haystack, read; reset and read again."""
    key, value, old_key, old_value = needle
    normalisation = layer.memory.config.qk_projection.normalisation
    projection = QKProjection(layer.persistent, normalisation, degree)
    projection.inject_memory(old_key, old_value)
    projection.reset_at_shard_boundary()
    projection.inject_all(haystack, haystack)
    control = projection.query_memory(key)
    projection.reset_at_shard_boundary()
    projection.inject_memory(key, value)
    projection.inject_all(haystack, haystack)
    found = projection.query_memory(key)
    projection.reset_at_shard_boundary()
    empty = projection.query_memory(key)

    persistent = layer.persistent.keys.transpose(0, 1).expand(len(key), -1, -1, -1)  # [B, P, H, d]
    keys = torch.cat((persistent, key.unsqueeze(1), haystack), dim=1)
    values = torch.cat((persistent, value.unsqueeze(1), haystack), dim=1)
    per_key = normalisation is Normalisation.per_key
    wanted = reference_read(key, keys, values, degree, per_key)
    wanted_empty = reference_read(key, persistent, persistent, degree, per_key)
    return Readings(
        F.cosine_similarity(found, value, dim=-1),
        F.cosine_similarity(control, value, dim=-1),
        scale=float(found.norm() / wanted.norm().clamp(min=EPSILON)),
        leftover=_deviation(empty, wanted_empty),
    )


def _deviation(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp(min=EPSILON))


def _faults(reading: Readings) -> set[str]:
    faults = set()
    if abs(reading.scale - 1) > TOLERANCE:
        faults.add(f"what comes back is {reading.scale:.3f} times as large as the algebra says (norm_persistent?)")
    if reading.leftover > TOLERANCE:
        faults.add(f"after a reset it is off its persistent keys by {reading.leftover:.1%}")
    return faults


def _parallel_faults(layer: MemoryLayer, plan: ChunkPlan, haystack: Tensor) -> set[str]:
    """The model's own parallel form across a boundary: its sums must be those of the open shard alone."""
    projector, settings = layer.memory.projector, layer.memory.config.qk_projection
    if settings.range is ProjectionRange.off or settings.normalisation is Normalisation.per_key:
        return set()
    periods = (plan.shard,) if settings.range is ProjectionRange.shard else plan.local
    extra = haystack[0].transpose(0, 1)  # [H, n, d]
    length = max(period or 0 for period in periods) + 1
    keys = extra.repeat(1, -(-length // extra.shape[1]), 1)[:, :length]
    start = projector.initial_state(layer.persistent, 1, plan)
    _, sums = projector(keys, keys, start, 0, layer.persistent, plan)
    prefix = layer.persistent.keys.detach()  # [H, P, d]
    faults = set()
    for period, total in zip(periods, sums, strict=True):
        open_tokens = length if period is None else (length - 1) % period + 1
        seen = torch.cat((prefix, keys[:, length - open_tokens :]), dim=1)
        if _deviation(total.norm, seen.square().sum((-2, -1))) > TOLERANCE:
            faults.add("after a shard boundary the model's norm is not norm_persistent and the shard's own keys")
        if _deviation(total.matrix, seen.mT @ seen) > TOLERANCE:
            faults.add("after a shard boundary the model's sum is not M_persistent and the shard's own keys")
    return faults


def _result(
    model: AtlasModel,
    settings: NIAHConfig,
    step: int,
    readings: dict[tuple[str, int], list[Readings]],
    faults: Sequence[str],
) -> NIAHResult:
    layers = memory_layers(model)
    keys, width = settings.haystack + layers[0].persistent.keys.shape[1], layers[0].head_width
    cells = tuple(
        ProbeCell(
            f"degree {degree}",
            name,
            settings.haystack,
            accuracy=_mean([reading.cosine for reading in found]),
            control=_mean([reading.control for reading in found]),
            expected=expected_cosine(keys, width, degree),
            samples=sum(reading.cosine.numel() for reading in found),
        )
        for (name, degree), found in readings.items()
    )
    judged = next(c for c in cells if (c.task, c.haystack) == (f"degree {settings.accumulator_degree}", "random keys"))
    raw = next(c for c in cells if (c.task, c.haystack) == ("degree 1", "random keys"))
    own = readings["random keys", settings.accumulator_degree]
    details = {
        "raw_accuracy": raw.accuracy or 0.0,
        "raw_expected": expected_cosine(keys, width, 1),
        "raw_expected_coherent": coherent_cosine(keys, width),
        "degree": float(settings.accumulator_degree),
        "scale": max((reading.scale for reading in own), key=lambda scale: abs(scale - 1)),
        "leftover": max(reading.leftover for reading in own),
    }
    return judge(
        step=step,
        level=LEVEL,
        threshold=settings.threshold,
        accuracy=judged.accuracy,
        control=judged.control,
        chance=CHANCE,
        expected=judged.expected,
        faults=faults,
        cells=cells,
        details=details,
    )


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.cat([value.flatten() for value in values]).mean())
