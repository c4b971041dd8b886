"""The memory branch of a block against its slow form: every row and token on its own, inner gradients by autograd.

Legend: B sequences, H heads, T tokens, D model width, d head width.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations_with_replacement
from math import factorial, prod

import pytest
import torch
from torch import Tensor

from atlas.config import (
    AtlasRuleConfig,
    ConfigError,
    MemoryConfig,
    MuonRuleConfig,
    Normalisation,
    OmegaRuleConfig,
    ProjectionRange,
    QKProjectionConfig,
    Rule,
)
from atlas.config.rules import RuleConfig
from atlas.models.memory import AtlasMemory
from atlas.models.persistent import PersistentMemory
from atlas.models.plan import ChunkPlan, Lasting, MemoryMode
from atlas.models.qk_projection import QKProjection
from atlas.ops.chunk_scan.reference import ReferenceMemory, Token, Weights
from atlas.ops.rules.atlas import Atlas
from atlas.ops.rules.muon import FLOOR

BATCH, HEADS, TOKENS, HEAD_WIDTH = 2, 2, 9, 4
PLAN = ChunkPlan(local=(2, 3), global_size=4, shard=6)
UNEVEN = ChunkPlan(local=(4, 5), global_size=4, shard=6)  # the last chunk of a shard is shorter
ATLAS = AtlasRuleConfig(iterations=4, iterations_global=2, window=2, gate=0.5)
BASE = MemoryConfig(
    hidden=3, momentum=0.5, retention=0.9, omega=OmegaRuleConfig(2, 0.5), atlas=ATLAS, weight_norm_max=1.0
)
CASES = {
    **{str(rule): replace(BASE, rule=rule) for rule in Rule},
    "gd, chunk range, per key": replace(
        BASE,
        qk_projection=QKProjectionConfig(ProjectionRange.chunk, Normalisation.per_key, renormalise=False, mix=False),
    ),
    "gd, no projection": replace(BASE, qk_projection=QKProjectionConfig(ProjectionRange.off)),
    "gd, projected query alone": replace(BASE, qk_projection=QKProjectionConfig(mix=False)),
    "gd, mix, chunk range, as long as they are": replace(
        BASE, qk_projection=QKProjectionConfig(ProjectionRange.chunk, renormalise=False)
    ),
    "gd, degree 2": replace(BASE, degree=2, feature_width=2),
    "omega with retention": replace(BASE, rule=Rule.omega, omega=OmegaRuleConfig(2, 0.5, 0.9)),
    "omega, a window longer than chunks": replace(BASE, rule=Rule.omega, omega=OmegaRuleConfig(5, 0.5, 0.9)),
    "atlas, a window longer than a shard": replace(BASE, rule=Rule.atlas, atlas=replace(ATLAS, window=7)),
    "atlas": replace(BASE, rule=Rule.atlas, degree=2, learnable_coefficients=True),
    "gd, degree 3": replace(BASE, degree=3, feature_width=3, learnable_coefficients=True),
    "gd, degree 1 with coefficients": replace(BASE, learnable_coefficients=True),
}


def make(config: MemoryConfig) -> tuple[AtlasMemory, PersistentMemory, Tensor]:
    torch.manual_seed(0)
    width = HEADS * HEAD_WIDTH
    memory = AtlasMemory(width, HEADS, len(PLAN.local), config).double()
    persistent = PersistentMemory(HEADS, 5, HEAD_WIDTH).double()
    with torch.no_grad():  # nothing may start at zero here: every parameter has to matter
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return memory, persistent, torch.randn(BATCH, TOKENS, width, dtype=torch.float64, requires_grad=True)


def slow(settings: RuleConfig) -> dict[str, int]:
    """What the reference has to know besides the names of the gates."""
    own = getattr(settings, settings.rule, None)
    return {name: getattr(own, name) for name in ("window", "iterations") if hasattr(own, name)}


def slow_form(memory: AtlasMemory, persistent: PersistentMemory, x: Tensor, plan: ChunkPlan = PLAN) -> Tensor:
    """[B, T, D]: the equations of docs/memory.md section 6, one token at a time."""
    tokens, _ = memory.inputs(x, memory.inputs.initial_state(BATCH))
    rates, controls = memory.inputs.rates(x), memory.controls(x)
    rows = []
    for row in range(BATCH * HEADS):
        head = row % HEADS
        starts = [Weights(init.down[head], *init.up[head].chunk(2)) for init in (*memory.local, *memory.global_memory)]
        gates = tuple(control.name for control in memory.rule.controls)
        limit, settings = memory.config.weight_norm_max, memory.config
        outputs = []
        for t in range(TOKENS):
            query, key = tokens.query[row, t], tokens.key[row, t]
            if t == 0:
                top = lasts = ReferenceMemory(starts[-1], True, limit, gates, **slow(settings.of_global()), floor=FLOOR)
            if plan.lasting and t % plan.lasting.period == 0:
                top = replace(lasts, history=[*lasts.history], chunk=[*lasts.chunk])
            if t % (plan.shard or TOKENS) == 0:
                local = [
                    ReferenceMemory(start, False, limit, gates, **slow(settings), floor=FLOOR) for start in starts[:-1]
                ]
            total = torch.zeros_like(query)
            for index, one in enumerate((*local, top)):
                chunk = (*plan.local, plan.global_size)[index]
                asked = query if one is top else projected(memory, persistent, tokens.query, tokens.key, row, t, chunk)
                token = Token(
                    asked,
                    key,
                    tokens.value[row, t],
                    features(memory, asked, head),
                    features(memory, key, head),
                    rates[index, row, t],
                    controls[index, row, t],
                )
                total = total + one.recall(token, chunk)
                if one is top and plan.lasting:
                    small = token.rate < plan.lasting.rate
                    lasts.recall(token._replace(rate=token.rate * 0) if small else token, chunk)
            outputs.append(total)
        rows.append(torch.stack(outputs))
    recalled = torch.stack(rows).unflatten(0, (BATCH, HEADS)).transpose(1, 2).flatten(2)
    out: Tensor = memory.norm(recalled)
    return out


def projected(
    memory: AtlasMemory, persistent: PersistentMemory, queries: Tensor, keys: Tensor, row: int, t: int, chunk: int
) -> Tensor:
    """q'_t of one row, from the sums begun anew; with a mix, q_t + lambda q'_t."""
    config = memory.config.qk_projection
    if config.range is ProjectionRange.off:
        return queries[row, t]
    in_shard = t % PLAN.shard
    first = t - (in_shard % chunk if config.range is ProjectionRange.chunk else in_shard)
    steps = QKProjection(persistent, config.normalisation)
    for i in range(first, t + 1):
        steps.update(keys[row, i].expand(HEADS, -1))
    out = steps.project(queries[row, t].expand(HEADS, -1))[row % HEADS]
    out = out / out.norm() if config.renormalise else out
    if memory.mix is None:
        return out
    mixed = queries[row, t] + memory.mix[row % HEADS] * out
    return mixed / mixed.norm() if config.renormalise else mixed


def features(memory: AtlasMemory, x: Tensor, head: int) -> Tensor:
    if memory.features.projection is not None:
        x = x @ memory.features.projection[head]
    degree, coefficients = memory.config.degree, memory.features.coefficients
    found = []
    for place, i in enumerate([1] if degree == 1 else range(degree + 1)):
        factor = x.new_ones(()) if coefficients is None else coefficients[head, place]
        for monomial in combinations_with_replacement(range(len(x)), i):
            exponents = Counter(monomial).values()
            found.append(factor * x[list(monomial)].prod() / prod(map(factorial, exponents)) ** 0.5)
    return torch.stack(found)


LASTING = PLAN.with_lasting(0.5, 5)  # the rates here are on both sides of it; a period ends within a chunk
PLANS = [*((name, PLAN) for name in CASES), *((name, UNEVEN) for name in [*Rule, "gd, chunk range, per key"])]
PLANS += [(rule, LASTING) for rule in Rule]


@pytest.mark.parametrize(("name", "plan"), PLANS)
def test_the_branch_equals_its_slow_form_and_all_gradients(name: str, plan: ChunkPlan) -> None:
    memory, persistent, x = make(CASES[name])
    state = memory.initial_state(BATCH, persistent, plan)
    fast, _ = memory(x, state, 0, persistent, plan, MemoryMode.learn)
    slow = slow_form(memory, persistent, x, plan)
    torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-9)
    inputs = [x, persistent.keys, *memory.parameters()]
    weight = torch.randn_like(fast)
    found, expected = (torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True) for out in (fast, slow))
    names = ["x", "persistent keys", *(name for name, _ in memory.named_parameters())]
    idle = {"persistent keys"} if CASES[name].qk_projection.range is ProjectionRange.off else set()
    assert {name for name, grad in zip(names, found, strict=True) if grad is None} == idle
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rule", list(Rule))
def test_what_lasts_may_be_read_in_parts(rule: Rule) -> None:
    memory, persistent, x = make(replace(BASE, rule=rule))
    whole, _ = memory(x, memory.initial_state(BATCH, persistent, LASTING), 0, persistent, LASTING, MemoryMode.learn)
    state, outputs = memory.initial_state(BATCH, persistent, LASTING), []
    for first, end in ((0, 2), (2, 3), (3, 7), (7, TOKENS)):
        out, state = memory(x[:, first:end], state, first, persistent, LASTING, MemoryMode.learn)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole)


def test_all_lasts_at_rate_0_and_within_the_first_period() -> None:
    memory, persistent, x = make(BASE)
    state = memory.initial_state(BATCH, persistent, LASTING)
    plain, _ = memory(x, memory.initial_state(BATCH, persistent, PLAN), 0, persistent, PLAN, MemoryMode.learn)
    for lasting, same in ((Lasting(0.0, 5), TOKENS), (Lasting(1.0, 5), 5), (Lasting(0.5, TOKENS), TOKENS)):
        out, _ = memory(x, state, 0, persistent, PLAN._replace(lasting=lasting), MemoryMode.learn)
        torch.testing.assert_close(out[:, :same], plain[:, :same])
        assert same == TOKENS or not torch.allclose(out[:, same:], plain[:, same:])


def test_a_mix_starts_as_the_raw_query_and_one_without_a_projection_has_no_parameter() -> None:
    outputs = []
    for config in (QKProjectionConfig(mix=True), QKProjectionConfig(ProjectionRange.off, mix=True)):
        torch.manual_seed(0)
        memory = AtlasMemory(HEADS * HEAD_WIDTH, HEADS, len(PLAN.local), replace(BASE, qk_projection=config)).double()
        persistent = PersistentMemory(HEADS, 5, HEAD_WIDTH).double()
        x = torch.randn(BATCH, TOKENS, HEADS * HEAD_WIDTH, dtype=torch.float64)
        state = memory.initial_state(BATCH, persistent, PLAN)
        outputs.append(memory(x, state, 0, persistent, PLAN, MemoryMode.learn)[0])
    torch.testing.assert_close(outputs[0], outputs[1])
    assert memory.mix is None


@pytest.mark.parametrize("rule", list(Rule))
def test_a_frozen_memory_reads_its_initial_weights(rule: Rule) -> None:
    memory, persistent, x = make(replace(BASE, rule=rule, weight_norm_max=8.0))
    state = memory.initial_state(BATCH, persistent, PLAN)
    _, after = memory(x, state, 0, persistent, PLAN, MemoryMode.frozen)
    for before, end in zip((*state.local, *state.global_memory), (*after.local, *after.global_memory), strict=True):
        torch.testing.assert_close(tuple(end.start), tuple(before.start))


def test_a_memory_that_is_off_gives_zeros() -> None:
    memory, persistent, x = make(BASE)
    state = memory.initial_state(BATCH, persistent, PLAN)
    out, after = memory(x, state, 0, persistent, PLAN, MemoryMode.off)
    assert torch.count_nonzero(out) == 0
    assert after is state


def test_every_rule_starts_from_the_same_weights() -> None:
    weights = {}
    for rule in Rule:
        torch.manual_seed(0)
        memory = AtlasMemory(8, HEADS, 2, replace(BASE, rule=rule))
        weights[rule] = {name: value for name, value in memory.state_dict().items() if not name.startswith("controls")}
    for rule in Rule:
        assert weights[rule].keys() == weights[Rule.gd].keys()
        assert all(torch.equal(value, weights[Rule.gd][name]) for name, value in weights[rule].items())


@pytest.mark.parametrize("rule", list(Rule))
def test_controls_start_where_the_configuration_says(rule: Rule) -> None:
    set_to = {"theta": 0.5, "forget": 0.1, "rho": 0.2, "gamma": 0.5}
    config = replace(BASE, rule=rule, muon=MuonRuleConfig(0.5, 0.2), atlas=replace(ATLAS, rate_init=0.2))
    _, _, x = make(config)
    memory = AtlasMemory(8, HEADS, 2, config).double()
    controls, gates = memory.controls(x), memory.rule.controls
    expected = [set_to.get(gate.name.split()[0], gate.initial) for gate in gates]
    assert controls.shape == (3, BATCH * HEADS, TOKENS, len(gates))
    torch.testing.assert_close(controls, torch.tensor(expected, dtype=x.dtype).expand_as(controls), rtol=0, atol=1e-6)


def test_a_control_at_the_end_of_its_range_is_fixed_and_has_no_parameter() -> None:
    memory, _, x = make(replace(BASE, rule=Rule.momentum, momentum=0.0, retention=1.0))
    assert list(memory.controls.parameters()) == []
    assert torch.count_nonzero(memory.controls(x)) == 0
    memory, _, x = make(replace(BASE, rule=Rule.omega, omega=OmegaRuleConfig(gate=1.0)))
    assert torch.equal(memory.controls(x), torch.ones(3, BATCH * HEADS, TOKENS, 1, dtype=x.dtype))


def test_the_global_memory_may_have_newton_schulz_iterations_of_its_own() -> None:
    def iterations(config: MemoryConfig) -> tuple[int, int]:
        memory = AtlasMemory(8, HEADS, 2, config)
        rules = [rule.muon if isinstance(rule, Atlas) else rule for rule in (memory.rule, memory.global_rule)]
        return rules[0].iterations, rules[1].iterations

    assert iterations(MemoryConfig(rule=Rule.muon)) == (5, 5)
    assert iterations(MemoryConfig(rule=Rule.muon, muon=MuonRuleConfig(iterations=4))) == (4, 4)
    assert iterations(MemoryConfig(rule=Rule.muon, muon=MuonRuleConfig(iterations_global=3))) == (5, 3)
    assert iterations(MemoryConfig(rule=Rule.atlas)) == (5, 3)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_rates_start_where_the_configuration_says_and_are_nothing_below_the_threshold(threshold: float) -> None:
    torch.manual_seed(0)
    config = replace(BASE, rate_max=0.8, rate_init=0.3, rate_threshold=threshold)
    inputs = AtlasMemory(8, HEADS, 2, config).double().inputs
    x = torch.randn(BATCH, TOKENS, 8, dtype=torch.float64)
    torch.testing.assert_close(inputs.rates(x), torch.full_like(inputs.rates(x), 0.3), rtol=0, atol=1e-6)
    with torch.no_grad():
        inputs.rate.weight.normal_()
    gates = torch.sigmoid(inputs.rate(x)).unflatten(-1, (-1, HEADS)).permute(2, 0, 3, 1).flatten(1, 2)
    rates = inputs.rates(x)
    assert rates[gates <= threshold].eq(0).all()
    above = gates > threshold
    torch.testing.assert_close(rates[above], 0.8 * (gates[above] - threshold) / (1 - threshold))


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("degree", 4, "1, 2 or 3"),
        ("feature_width", -1, ">= 0"),
        ("rate_max", 1.5, r"in \(0, 1\]"),
        ("rate_threshold", 1.0, r"in \[0, 1\)"),
        ("curvature_max", 2e15, r"in \[1e-15, 1e\+15\] or 0 \(no limit\)$"),  # the square of 2e19 is no float32
        ("curvature_max_local", -1.0, r"in \[1e-15, 1e\+15\] or 0 \(no limit\)$"),
        ("weight_norm_max", 0.0, r"in \[1e-15, 1e\+15\]$"),
        ("momentum", 1.0, r"in \[0, 1\)"),
        ("momentum", float("nan"), r"in \[0, 1\)"),
        ("retention", 0.0, r"in \(0, 1\]"),
        ("retention", 1.1, r"in \(0, 1\]"),
    ],
)
def test_a_bad_setting_is_refused(setting: str, value: float, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"model.memory.{setting}={value}: must be {allowed}"):
        MemoryConfig(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "setting", "value", "allowed"),
    [
        (MuonRuleConfig, "muon.rate_max", 1.5, r"in \(0, 1\]"),
        (MuonRuleConfig, "muon.rate_init", 1.0, r"in \(0, model.memory.muon.rate_max=1.0\)"),
        (MuonRuleConfig, "muon.iterations", 0, ">= 1"),
        (OmegaRuleConfig, "omega.window", 0, ">= 1"),
        (OmegaRuleConfig, "omega.gate", 0.0, r"in \(0, 1\]"),
        (OmegaRuleConfig, "omega.retention", 0.0, r"in \(0, 1\]"),
        (MuonRuleConfig, "muon.iterations_global", 0, ">= 1"),
        (AtlasRuleConfig, "atlas.rate_init", 1.0, r"in \(0, model.memory.atlas.rate_max=1.0\)"),
        (AtlasRuleConfig, "atlas.iterations", 0, ">= 1"),
        (AtlasRuleConfig, "atlas.window", 0, ">= 1"),
        (AtlasRuleConfig, "atlas.gate", 1.5, r"in \(0, 1\]"),
    ],
)
def test_a_bad_setting_of_a_rule_is_refused(rule: type, setting: str, value: float, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"model.memory.{setting}={value}: must be {allowed}"):
        rule(**{setting.partition(".")[2]: value})
