"""The Q-K projection inside the model: step form == parallel form, resets, and no gradient across a shard boundary.

Legend: B sequences, H heads, T tokens, d head width, N = B * H rows.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import Normalisation, ProjectionRange, QKProjectionConfig
from atlas.models.persistent import PersistentMemory
from atlas.models.plan import ChunkPlan
from atlas.models.qk_projection import QKProjection, QueryProjector, persistent_sums

BATCH, HEADS, TOKENS, WIDTH, SHARD = 2, 3, 20, 4, 8
PLAN = ChunkPlan((2, 4), 8, SHARD)
each_normalisation = pytest.mark.parametrize("normalisation", list(Normalisation))


def persistent_memory() -> PersistentMemory:
    torch.manual_seed(0)
    memory = PersistentMemory(HEADS, 6, WIDTH).double()
    with torch.no_grad():
        memory.keys.add_(torch.randn_like(memory.keys) * 0.3)
    return memory


def queries_and_keys() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    query, key = torch.randn(2, BATCH * HEADS, TOKENS, WIDTH, dtype=torch.float64)
    return query.requires_grad_(), key.requires_grad_()


def step_form(
    query: Tensor, key: Tensor, persistent: PersistentMemory, normalisation: Normalisation, period: int
) -> Tensor:
    """[N, T, d] by the class that does one token at a time."""
    steps = QKProjection(persistent, normalisation)
    outputs = []
    for t in range(TOKENS):
        if t % period == 0:
            steps.reset_at_shard_boundary()
        steps.update(key[:, t].unflatten(0, (BATCH, HEADS)))
        outputs.append(steps.project(query[:, t].unflatten(0, (BATCH, HEADS))).flatten(0, 1))
    return torch.stack(outputs, dim=1)


@each_normalisation
@pytest.mark.parametrize("kind", [ProjectionRange.shard, ProjectionRange.chunk])
@pytest.mark.parametrize("first", [0, 3, 8, 13])
def test_the_parallel_form_equals_the_step_form_and_its_gradients(
    normalisation: Normalisation, kind: ProjectionRange, first: int
) -> None:
    persistent, (query, key) = persistent_memory(), queries_and_keys()
    projector = QueryProjector(QKProjectionConfig(kind, normalisation, renormalise=False), HEADS)
    state = projector.initial_state(persistent, BATCH, PLAN)
    stretches = [(0, first), (first, TOKENS)] if first else [(0, TOKENS)]
    pieces = []
    for begin, end in stretches:
        out, state = projector(query[:, begin:end], key[:, begin:end], state, begin, persistent, PLAN)
        pieces.append(out)
    fast = [torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)]
    periods = PLAN.local if kind is ProjectionRange.chunk else (SHARD,)
    slow = [step_form(query, key, persistent, normalisation, period) for period in periods]
    torch.testing.assert_close(fast, slow)
    weight, inputs = torch.randn_like(query), [query, key, persistent.keys]
    found, expected = (torch.autograd.grad(sum((out * weight).sum() for out in form), inputs) for form in (fast, slow))  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", ["parallel", "steps"])
def test_no_gradient_reaches_a_key_of_an_earlier_shard(form: str) -> None:
    persistent, (query, key) = persistent_memory(), queries_and_keys()
    if form == "steps":
        out = step_form(query, key, persistent, Normalisation.sum, SHARD)
    else:
        projector = QueryProjector(QKProjectionConfig(renormalise=True), HEADS)
        state = projector.initial_state(persistent, BATCH, PLAN)
        (out,), _ = projector(query, key, state, 0, persistent, PLAN)
    second = out[:, SHARD : 2 * SHARD]
    (gradient,) = torch.autograd.grad((second * torch.randn_like(second)).sum(), key)
    assert torch.count_nonzero(gradient[:, :SHARD]) == 0
    assert gradient[:, SHARD : 2 * SHARD].abs().min().item() > 1e-9


def test_off_projects_nothing() -> None:
    persistent, (query, key) = persistent_memory(), queries_and_keys()
    projector = QueryProjector(QKProjectionConfig(ProjectionRange.off), HEADS)
    assert projector(query, key, (), 0, persistent, PLAN) == ([], ())


def test_a_renormalised_query_has_unit_length() -> None:
    persistent, (query, key) = persistent_memory(), queries_and_keys()
    projector = QueryProjector(QKProjectionConfig(), HEADS)
    (out,), _ = projector(query, key, projector.initial_state(persistent, BATCH, PLAN), 0, persistent, PLAN)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(BATCH * HEADS, TOKENS, dtype=torch.float64))


@each_normalisation
def test_an_injected_pair_is_found_by_its_key(normalisation: Normalisation) -> None:
    persistent = persistent_memory()
    steps = QKProjection(persistent, normalisation)
    torch.manual_seed(2)
    key, value = torch.randn(2, HEADS, WIDTH, dtype=torch.float64)
    before = steps.query_memory(key)
    total = steps.norm_sum
    steps.inject_memory(key, value)
    per_key = normalisation is Normalisation.per_key
    gain = value if per_key else value * key.square().sum(-1, keepdim=True)
    scale = 1.0 if per_key else total.unsqueeze(-1)
    after = 1.0 if per_key else (total + key.square().sum(-1)).unsqueeze(-1)
    torch.testing.assert_close(steps.query_memory(key), (before * scale + gain) / after)
    steps.reset_at_shard_boundary()
    torch.testing.assert_close(steps.query_memory(key), before)


def test_the_persistent_sums_are_those_of_the_keys() -> None:
    """AC-P0-2, AC-P0-3: of all 64 keys, and of the keys as they are now."""
    torch.manual_seed(0)
    persistent = PersistentMemory(2, 64, 16).double()
    for scale in (1.0, 0.5):
        with torch.no_grad():
            persistent.keys.mul_(scale)
        for head in range(2):
            keys = persistent.keys[head]
            matrix = sum(torch.outer(keys[p], keys[p]) for p in range(64))
            torch.testing.assert_close(persistent.m_persistent[head], matrix)
            torch.testing.assert_close(persistent.norm_persistent[head], sum(keys[p] @ keys[p] for p in range(64)))
            unit = F.normalize(keys, dim=-1)
            torch.testing.assert_close(persistent.m_persistent_per_key[head], unit.T @ unit)


@pytest.mark.parametrize("per_key", [False, True])
def test_the_sums_start_in_the_precision_of_the_keys_under_autocast(per_key: bool) -> None:
    """The kernels take no other start."""
    torch.manual_seed(0)
    persistent = PersistentMemory(2, 64, 16)
    exact = persistent_sums(persistent, per_key)
    with torch.autocast("cpu", torch.bfloat16):
        found = persistent_sums(persistent, per_key)
    for ours, theirs in zip(found, exact, strict=True):
        assert torch.equal(ours, theirs)


def test_the_persistent_keys_start_as_a_tight_frame() -> None:
    torch.manual_seed(0)
    identity = torch.eye(16).expand(2, 16, 16)
    torch.testing.assert_close(PersistentMemory(2, 64, 16).m_persistent, 4 * identity)
