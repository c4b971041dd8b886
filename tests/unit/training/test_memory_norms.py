"""Norms that telemetry shows, against their definitions on a model small enough to do by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atlas.config import (
    AtlasRuleConfig,
    ChunkSizeConfig,
    MemoryConfig,
    ModelConfig,
    Normalisation,
    OmegaRuleConfig,
    ProjectionRange,
    QKProjectionConfig,
    Rule,
)
from atlas.models.block import AtlasMAGBlock
from atlas.models.language_model import AtlasModel
from atlas.models.memory import AtlasMemory
from atlas.models.qk_projection import QKProjection
from atlas.training.memory_norms import catching, memory_norms

LOCAL, SHARD, TOKENS = [2, 4], 8, 16


def make(memory: MemoryConfig | None = None) -> tuple[AtlasModel, Tensor]:
    torch.manual_seed(0)
    memory = memory or MemoryConfig(hidden=8, rate_init=0.5)
    config = ModelConfig(width=16, layers=2, heads=2, window=5, feedforward=12, persistent_keys=6, memory=memory)
    model = AtlasModel(config, ChunkSizeConfig(LOCAL, 8, SHARD), 17)
    return model, torch.randint(0, 17, (3, TOKENS))


def memory_of(model: AtlasModel, layer: int) -> AtlasMemory:
    block = model.blocks[layer]
    assert isinstance(block, AtlasMAGBlock)
    assert block.memory is not None
    return block.memory


def frobenius(*matrices: Tensor) -> float:
    """Mean over rows of the norm of several matrices [N, ...] together."""
    return torch.cat([matrix.flatten(1) for matrix in matrices], dim=1).norm(dim=1).mean().item()


@pytest.mark.parametrize("rule", list(Rule))
def test_weight_update_and_momentum_norms(rule: Rule) -> None:
    model, tokens = make(MemoryConfig(rule=rule, hidden=8, rate_init=0.5, omega=OmegaRuleConfig(window=2)))
    with catching(model) as catch:
        out = model(tokens)
        out.logits.sum().backward()
    starts = [(init.down.detach().clone(), init.up.detach().clone()) for init in memory_of(model, 1).local]
    with torch.no_grad():
        for parameter in model.parameters():  # the optimiser steps before the norms are taken
            parameter.add_(1.0)
    norms = memory_norms(catch)
    after = out.state.blocks[1].memory
    assert after is not None
    has_momentum = "theta" in [control.name for control in memory_of(model, 1).rule.controls]
    for index, (scan, (down, up)) in enumerate(zip(after.local, starts, strict=True)):
        name = f"memory/layer1/local{index}"
        assert norms[f"{name}/weight_norm"] == pytest.approx(frobenius(*scan.start), rel=1e-5)
        update = [end - start.repeat(3, 1, 1) for end, start in zip(scan.start, (down, up), strict=True)]
        assert norms[f"{name}/update_norm"] == pytest.approx(frobenius(*update), rel=1e-5)
        moved, origin = (
            torch.cat([part.flatten(1) for part in parts], 1).norm(dim=1)
            for parts in (update, (down.repeat(3, 1, 1), up.repeat(3, 1, 1)))
        )
        assert norms[f"{name}/write_ratio"] == pytest.approx((moved / origin).mean().item(), rel=1e-5)
        if has_momentum:
            assert norms[f"{name}/momentum_norm"] == pytest.approx(frobenius(*scan.kept.momentum), rel=1e-5)
    with_momentum = [name for name in norms if name.endswith("momentum_norm")]
    assert len(with_momentum) == (6 if has_momentum else 0)
    assert {name for name in norms if name.endswith("update_norm")} == {
        f"memory/layer{layer}/{which}/update_norm" for layer in (0, 1) for which in ("global", "local0", "local1")
    }


def test_the_update_of_a_carried_global_memory_is_that_of_the_segment() -> None:
    model, tokens = make()
    first = model(tokens).state.detach()
    with catching(model) as catch:
        after = model(tokens, first).state
    before_memory, after_memory = first.blocks[0].memory, after.blocks[0].memory
    assert before_memory is not None
    assert after_memory is not None
    pairs = zip(after_memory.global_memory[0].start, before_memory.global_memory[0].start, strict=True)
    expected = frobenius(*(end - start for end, start in pairs))
    assert memory_norms(catch)["memory/layer0/global/update_norm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalisation", list(Normalisation))
def test_query_norms_and_cosines_are_those_of_the_projection_step_by_step(normalisation: Normalisation) -> None:
    projection = QKProjectionConfig(ProjectionRange.shard, normalisation)
    model, tokens = make(MemoryConfig(hidden=8, qk_projection=projection))
    seen = []
    memory = memory_of(model, 0)
    handle = memory.inputs.register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    with catching(model) as catch:
        model(tokens)
    handle.remove()
    block = model.blocks[0]
    assert isinstance(block, AtlasMAGBlock)
    assert block.persistent is not None
    query, key = (field.unflatten(0, (3, 2)).transpose(1, 2) for field in (seen[0].query, seen[0].key))  # [B, T, H, d]
    steps = QKProjection(block.persistent, normalisation)
    for t in range(SHARD, TOKENS):  # the last shard
        steps.update(key[:, t])
    projected = torch.stack([steps.project(query[:, t]) for t in range(TOKENS)], dim=1)
    norms = memory_norms(catch)
    assert norms["memory/layer0/local0/query_norm"] == pytest.approx(projected.norm(dim=-1).mean().item(), rel=1e-4)
    assert norms["memory/layer0/local0/query_norm"] == norms["memory/layer0/local1/query_norm"]
    for name, vectors in (("query_cosine", projected), ("query_cosine_raw", query)):
        cosines = []
        for b, h in ((b, h) for b in range(3) for h in range(2)):
            for i, j in ((i, j) for i in range(TOKENS) for j in range(TOKENS)):
                if query[b, i, h] @ query[b, j, h] < 0.99:
                    cosines.append(torch.cosine_similarity(vectors[b, i, h], vectors[b, j, h], dim=0))
        assert norms[f"memory/layer0/{name}"] == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-4)


def test_keys_that_share_a_direction_are_seen_to_collapse_the_queries() -> None:
    found = {}
    for activate_keys in (False, True):
        model, tokens = make(MemoryConfig(hidden=8, activate_keys=activate_keys))
        with torch.no_grad():  # SiLU bends only what is not small
            memory_of(model, 0).inputs.qkv.weight.mul_(10)
        with catching(model) as catch:
            model(tokens)
        found[activate_keys] = memory_norms(catch)["memory/layer0/query_cosine"]
    assert found[True] is not None
    assert found[False] is not None
    assert found[True] > 0.5 > found[False]


def test_a_local_memory_with_a_range_of_its_own_has_a_norm_of_its_own_and_none_without_projection() -> None:
    for kind, expected in ((ProjectionRange.chunk, 4), (ProjectionRange.off, 0)):
        model, tokens = make(MemoryConfig(hidden=8, qk_projection=QKProjectionConfig(kind)))
        with catching(model) as catch:
            model(tokens)
        norms = memory_norms(catch)
        assert len({value for name, value in norms.items() if name.endswith("query_norm")}) == expected
        assert ("memory/layer0/query_cosine" in norms) == (expected > 0)


def test_what_is_not_finite_is_none_and_a_model_without_memory_has_no_norms() -> None:
    model, tokens = make()
    with torch.no_grad():
        memory_of(model, 1).inputs.qkv.weight.fill_(float("inf"))
    with catching(model) as catch:
        model(tokens)
    norms = memory_norms(catch)
    assert norms["memory/layer1/local0/weight_norm"] is None
    assert norms["memory/layer0/local0/weight_norm"] is not None
    model, tokens = make(MemoryConfig(enabled=False))
    with catching(model) as catch:
        model(tokens)
    assert memory_norms(catch) == {}


def test_rates_of_each_memory_and_gates_of_each_layer() -> None:
    model, tokens = make()
    inputs = []
    with torch.no_grad():
        for layer in (0, 1):
            memory_of(model, layer).inputs.rate.bias.copy_(torch.tensor([0.0, 0, 1, 1, 2, 2]))  # local 0, 1, global
    handles = [
        memory_of(model, layer).register_forward_hook(lambda _m, given, _o: inputs.append(given[0])) for layer in (0, 1)
    ]
    with catching(model) as catch:
        out = model(tokens)
    for handle in handles:
        handle.remove()
    norms = memory_norms(catch)
    for layer in (0, 1):
        rates = torch.sigmoid(memory_of(model, layer).inputs.rate(inputs[layer])).unflatten(-1, (3, 2)).mean((0, 1, 3))
        for which, rate in zip(("local0", "local1", "global"), rates.tolist(), strict=True):
            assert norms[f"memory/layer{layer}/{which}/rate"] == pytest.approx(rate, rel=1e-5)
        assert norms[f"memory/layer{layer}/gate_mean"] == pytest.approx(out.gates[layer].mean().item(), rel=1e-5)
        assert norms[f"memory/layer{layer}/gate_sharpness"] == pytest.approx(10, rel=1e-5)


def test_catching_leaves_no_hook_and_takes_the_first_pass_only() -> None:
    model, tokens = make()
    with catching(model) as catch:
        model(tokens)
        norms = memory_norms(catch)
        model(tokens.flip(0) * 0)
    assert memory_norms(catch) == norms
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule.gd, {}),
        (Rule.momentum, {"theta": 0.5, "forget": 0.001}),
        (Rule.omega, {"gamma": 0.25}),  # its retention is fixed
        (Rule.atlas, {"theta": 0.5, "forget": 0.001, "rho": 0.1, "gamma_of_lag_0": 0.25, "gamma_of_lag_1": 0.25}),
    ],
)
def test_means_of_the_gates_that_the_rule_learns(rule: Rule, expected: dict[str, float]) -> None:
    atlas_rule = AtlasRuleConfig(window=2)
    model, tokens = make(MemoryConfig(rule=rule, hidden=8, omega=OmegaRuleConfig(window=2), atlas=atlas_rule))
    with torch.no_grad():
        memory_of(model, 1).mix.copy_(torch.tensor([0.1, 0.3]))
    with catching(model) as catch:
        model(tokens)
    norms = memory_norms(catch)
    for memory in ("global", "local0"):
        found = {name.rpartition("/")[2]: norms[name] for name in norms if name.startswith(f"memory/layer1/{memory}/")}
        gates = {name: mean for name, mean in found.items() if name.startswith(("theta", "forget", "rho", "gamma"))}
        assert gates == pytest.approx(expected)
    assert norms["memory/layer1/lambda"] == pytest.approx(0.2)
