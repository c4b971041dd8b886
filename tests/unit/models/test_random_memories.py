"""Memories with random settings: causal, rows independent, cut anywhere.

Legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor

from atlas.config import AtlasRuleConfig, MemoryConfig, OmegaRuleConfig, ProjectionRange, QKProjectionConfig, Rule
from atlas.models.memory import AtlasMemory, MemoryState
from atlas.models.persistent import PersistentMemory
from atlas.models.plan import ChunkPlan, MemoryMode

BATCH, TOKENS, WIDTH, HEADS, SHARD = 2, 14, 8, 2, 6


def random_config(draw: Random) -> MemoryConfig:
    return MemoryConfig(
        rule=draw.choice(list(Rule)),
        momentum=draw.choice([0.0, 0.5, 0.9]),
        retention=draw.choice([0.9, 1.0]),
        omega=OmegaRuleConfig(draw.randint(1, 4), draw.choice([0.5, 1.0]), draw.choice([0.9, 1.0])),
        atlas=AtlasRuleConfig(window=draw.randint(1, 4), gate=draw.choice([0.5, 1.0]), iterations=2),
        use_global=draw.random() < 0.7,
        hidden=draw.randint(1, 4),
        degree=draw.randint(1, 3),
        feature_width=draw.randint(1, 3),
        learnable_coefficients=draw.random() < 0.5,
        convolution=draw.random() < 0.8,
        rate_init=0.5,
        weight_norm_max=draw.choice([0.5, 8.0]),
        qk_projection=QKProjectionConfig(draw.choice(list(ProjectionRange)), mix=draw.random() < 0.5),
    )


@pytest.mark.slow
def test_200_random_memories_are_causal_and_have_independent_rows_and_may_be_cut_anywhere() -> None:
    for seed in range(200):
        draw = Random(seed)
        torch.manual_seed(seed)
        config = random_config(draw)
        plan = ChunkPlan(tuple(draw.choices([1, 2, 3, 6], k=draw.randint(1, 2))), draw.randint(1, 8), SHARD)
        memory = AtlasMemory(WIDTH, HEADS, len(plan.local), config).double()
        persistent = PersistentMemory(HEADS, 3, WIDTH // HEADS).double()
        with torch.no_grad():
            for parameter in memory.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        x, other = torch.randn(2, BATCH, TOKENS, WIDTH, dtype=torch.float64)
        t = draw.randint(1, TOKENS - 1)

        def run(x: Tensor, state: MemoryState | None = None, first: int = 0) -> tuple[Tensor, MemoryState]:
            state = state or memory.initial_state(BATCH, persistent, plan)  # noqa: B023 (called in this round only)
            return memory(x, state, first, persistent, plan, MemoryMode.learn)  # type: ignore[no-any-return] # noqa: B023

        with torch.no_grad():
            whole, _ = run(x)
            later, _ = run(torch.cat((x[:, :t], other[:, t:]), dim=1))
            rows, _ = run(torch.cat((x[:1], other[1:])))
            before, state = run(x[:, :t])
            after, _ = run(x[:, t:], state, t)
        told = f"seed {seed}, cut at {t}, {plan}, {config}: {{}}".format
        torch.testing.assert_close(later[:, :t], whole[:, :t], rtol=0, atol=1e-12, msg=told)
        torch.testing.assert_close(rows[:1], whole[:1], rtol=0, atol=1e-12, msg=told)
        torch.testing.assert_close(torch.cat((before, after), dim=1), whole, rtol=1e-8, atol=1e-9, msg=told)
