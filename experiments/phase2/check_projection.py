"""G2-3: the model's Q-K projection against its definition, from the keys alone, at every shard boundary.

Legend: B sequences, H heads, N = B * H rows, T tokens, S shard, d head width, P persistent keys.

    M_t    = sum_p k_p k_p^T    + sum_{i = shard start .. t} k_i k_i^T
    norm_t = sum_p ||k_p||^2    + sum_{i = shard start .. t} ||k_i||^2

Measured in float64 on the CPU, on the keys and queries that the model's own layers make of random bytes. By default q'
is L2-normalised before the memory reads it, which hides a wrong norm. So it is measured without that as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from atlas.models.language_model import AtlasModel
from atlas.models.memory import MemoryState
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.models.qk_projection import QKProjection, QueryProjector
from atlas.probes.keys import MemoryLayer, memory_layers
from experiments.phase2.definition import DefinedProjector, defined_sums, persistent_start
from experiments.phase2.finding import Finding, failed, passed

TOLERANCE = 1e-8  # largest difference over the largest value; round-off stays below 1e-11
ROWS = 2  # sequences
# What is compared, for numerator and denominator alike.
COMPARED = (
    "step form, start",
    "step form, reset",
    "parallel form, start",
    "parallel form, queries",
    "forward pass, sums",
    "forward pass, output",
)


@dataclass(frozen=True)
class LayerEvidence:
    """Of one layer's projection. Gradients are of q' in the second shard, to keys through M_t and norm_t."""

    layer: int
    errors: Mapping[str, float]  # for each of COMPARED, the larger of numerator's and denominator's
    leaked: int  # components of the gradient to keys of the first shard that are not exactly 0
    reached: float  # share of the second shard's keys that a gradient reaches
    norms: tuple[float, ...]  # norm_persistent per head, as the parallel form starts from it

    def complaints(self) -> list[str]:
        """What does not hold. A comparison that is missing or not finite does not hold."""
        errors = {name: self.errors.get(name, float("nan")) for name in COMPARED}
        found = [
            f"{name} differs from the definition by {error:.1e}"
            for name, error in errors.items()
            if not (isfinite(error) and error <= TOLERANCE)
        ]
        if self.leaked:
            found.append(f"AC-P2-7: {self.leaked} components of a gradient cross the shard boundary through M_t")
        if self.reached < 1:
            found.append(f"AC-P2-7: gradients reach {self.reached:.0%} of the keys of their own shard, wanted 100%")
        return [f"layer {self.layer}: {text}" for text in found]


def judge_projection(layers: Sequence[LayerEvidence], source: str) -> Finding:
    """`source` says which model was measured."""
    numbers = {
        f"layer {one.layer}": {
            **one.errors,
            "gradients across the boundary": one.leaked,
            "keys reached inside the shard": one.reached,
            "norms": one.norms,
        }
        for one in layers
    }
    complaints = [text for one in layers for text in one.complaints()]
    if not layers:
        complaints = ["the model has no Q-K projection"]
    if complaints:
        return failed(complaints[0], *complaints[1:], f"measured on {source}", numbers=numbers)
    worst = max(error for one in layers for error in one.errors.values())
    return passed(
        "",
        f"numerator and denominator equal their definition within {worst:.0e} in {len(layers)} layers ({source})",
        "AC-P2-7: no gradient reaches a key of an earlier shard through M_t, and every key of the same shard gets one",
        numbers=numbers,
    )


def measure_projection(model: AtlasModel, seed: int = 0) -> list[LayerEvidence]:
    """An entry per layer that has a Q-K projection. `model` is left as it was."""
    twin = deepcopy(model).cpu().double().eval()
    shard = twin.plan.shard
    assert shard is not None  # only inference does without shards
    tokens = 2 * shard + max(1, shard // 2)  # two boundaries, and a shard that stays open
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, twin.embedding.num_embeddings, (ROWS, tokens), generator=generator)
    layers = [layer for layer in memory_layers(twin) if layer.memory.projector.periods(twin.plan)]
    given: dict[nn.Module, tuple[Any, ...]] = {}  # what each memory was called with
    hooks = [layer.memory.register_forward_pre_hook(given.__setitem__) for layer in layers]
    with torch.no_grad():
        states = twin(text).state.blocks
    for hook in hooks:
        hook.remove()
    found = []
    for layer in layers:
        x, before = given[layer.memory][:2]
        found.append(_measure(layer, twin.plan, x, before, states[layer.index].memory))
    return found


def _measure(
    layer: MemoryLayer, plan: ChunkPlan, x: Tensor, before: MemoryState, after: MemoryState | None
) -> LayerEvidence:
    """x [B, T, D] is what the model gave to this layer's memory, `after` the state that its forward pass left."""
    assert after is not None
    with torch.no_grad():
        tokens, _ = layer.memory.inputs(x, before.recent)
        start = layer.memory.projector.initial_state(layer.persistent, 1, plan)[0]
        errors = _errors_of_steps(layer) | _errors_of_queries(layer, plan, tokens.query, tokens.key)
        errors |= _errors_of_forward(layer, plan, x, before, after, tokens.key)
    leaked, reached = _gradients_of_second_shard(layer, plan, tokens.query, tokens.key)
    return LayerEvidence(layer.index, errors, leaked, reached, tuple(start.norm.tolist()))


def _errors_of_steps(layer: MemoryLayer) -> dict[str, float]:
    """The class that takes one token at a time: as built, and reset after it has seen keys."""
    projector = layer.memory.projector
    wanted = persistent_start(layer.persistent.keys, projector.per_key)
    steps = QKProjection(layer.persistent, projector.config.normalisation)
    start = _relative_error((steps.matrix, steps.norm_sum), wanted)
    for key in layer.persistent.keys.flip(0).unbind(1):  # any keys will do
        steps.update(key)
    moved = _relative_error((steps.matrix, steps.norm_sum), wanted)
    steps.reset_at_shard_boundary()
    reset = _relative_error((steps.matrix, steps.norm_sum), wanted)
    # A reset of sums that had not moved proves nothing.
    return {"step form, start": start, "step form, reset": reset if moved > TOLERANCE else float("nan")}


def _errors_of_queries(layer: MemoryLayer, plan: ChunkPlan, query: Tensor, key: Tensor) -> dict[str, float]:
    """The parallel form from its own start, over all tokens [N, T, d], before q' is normalised again."""
    projector = _raw(layer.memory.projector)
    state = projector.initial_state(layer.persistent, ROWS, plan)
    wanted = persistent_start(layer.persistent.keys, projector.per_key)
    rows = tuple(part.repeat(ROWS, *[1] * (part.dim() - 1)) for part in wanted)  # row b * H + h
    start = max(_relative_error((sums.matrix, sums.norm), rows) for sums in state)
    found, _ = projector(query, key, state, 0, layer.persistent, plan)
    defined, _ = DefinedProjector(projector)(query, key, state, 0, layer.persistent, plan)
    return {"parallel form, start": start, "parallel form, queries": _relative_error(found, defined)}


def _errors_of_forward(
    layer: MemoryLayer, plan: ChunkPlan, x: Tensor, before: MemoryState, after: MemoryState, key: Tensor
) -> dict[str, float]:
    """What the model's own forward pass left in the sums, and what the memory recalls with q' by definition instead."""
    memory, projector = layer.memory, layer.memory.projector
    sums = []
    for left, period in zip(after.sums, projector.periods(plan), strict=True):
        wanted = defined_sums(key, layer.persistent.keys, projector.per_key, period, plan.shard)
        sums.append(_relative_error((left.matrix, left.norm), wanted))
    outputs = []
    mix, memory.mix = memory.mix, None  # the memory reads with q' alone: a lambda near 0 would hide it
    for raw in (_raw(projector), projector):
        recalled = []
        for form in (raw, DefinedProjector(raw)):
            memory.projector = form
            recalled.append(memory(x, before, 0, layer.persistent, plan, MemoryMode.learn)[0])
        outputs.append(_relative_error(recalled[:1], recalled[1:]))
    memory.projector, memory.mix = projector, mix
    return {"forward pass, sums": max(sums), "forward pass, output": max(outputs)}


def _gradients_of_second_shard(layer: MemoryLayer, plan: ChunkPlan, query: Tensor, key: Tensor) -> tuple[int, float]:
    """AC-P2-7 for both forms of q', in one pass and in two calls that are cut at the boundary."""
    shard, leaked, reached = plan.shard, 0, 1.0
    assert shard is not None
    keys = key.detach()[:, : 2 * shard].requires_grad_()
    weight = torch.randn(keys[:, shard:].shape, generator=torch.Generator().manual_seed(1), dtype=keys.dtype)
    for projector in (_raw(layer.memory.projector), layer.memory.projector):
        for stretches in ([(0, 2 * shard)], [(0, shard), (shard, 2 * shard)]):
            state = projector.initial_state(layer.persistent, ROWS, plan)
            for first, end in stretches:
                queries = query.detach()[:, first:end]
                outputs, state = projector(queries, keys[:, first:end], state, first, layer.persistent, plan)
            total = sum(((out[:, -shard:] * weight).sum() for out in outputs), torch.zeros((), dtype=keys.dtype))
            (gradient,) = torch.autograd.grad(total, keys)
            leaked += int(torch.count_nonzero(gradient[:, :shard]))
            reached = min(reached, (gradient[:, shard:] != 0).any(-1).double().mean().item())
    return leaked, reached


def _raw(projector: QueryProjector) -> QueryProjector:
    """The same projector without the normalisation that would hide a wrong norm."""
    raw = copy(projector)
    raw.config = replace(projector.config, renormalise=False)
    return raw


def _relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Largest difference over the largest value wanted, of the worst of several tensors; NaN stays NaN."""
    errors = [
        (one - other).abs().max() / other.abs().max().clamp(min=1e-300)
        for one, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(errors).max().item()
