"""The schedule of Stage 2, and what cannot work with it."""

from __future__ import annotations

from math import sqrt

import pytest

import atlas
from atlas.config import ConfigError, Stage2Config
from atlas.models.plan import ChunkPlan

STAGE2 = ["experiment=stage2", "init_from=RUN"]
ON = "stage2.enabled=true"


def test_chunk_and_clip_of_the_default_schedule() -> None:
    schedule = Stage2Config()
    first = {chunk: next(n for n in range(1, 5000) if schedule.chunk(n) == chunk) for chunk in (32, 31, 16, 8, 2, 1)}
    # 32 * 0.9993^(n - 1) falls below chunk + 1 there: n = 1 + ceil(ln(32 / (chunk + 1)) / -ln 0.9993)
    assert first == {32: 1, 31: 2, 16: 905, 8: 1813, 2: 3382, 1: 3961}
    assert [schedule.chunk(n) for n in (0, 1, 4200, 10**6)] == [32, 32, 1, 1]
    assert [schedule.limit(n) for n in (1, 905, 3961)] == [0.5, 0.5 * sqrt(2), 0.5 * sqrt(32)]


def test_a_schedule_that_grows_the_chunks_or_does_not_reach_one_is_told() -> None:
    default = Stage2Config()
    grows = (
        "Stage 2 begins with chunks of stage2.start=32, larger than those of the run that it goes on from, 16:"
        " they grow before they shrink (as it ended: stage2.start=16)"
    )
    slow = (
        "Stage 2 ends with chunks of 2, not of 1, the chunk of inference: stage2.decay=0.9993 is too slow for"
        " train.steps=3960, or stage2.floor=1 too high"
    )
    assert default.notices(3961, [8, 32]) == default.notices(3961, None) == []
    assert default.notices(3961, [8, 16]) == [grows]
    assert default.notices(3960, [16]) == [grows, slow]
    assert Stage2Config(start=16, decay=1).notices(60, [16]) == []  # the control


def test_several_memories_keep_the_ratios_of_their_chunks() -> None:
    schedule = Stage2Config(start=32, decay=0.5, floor=2)
    assert [schedule.local([4, 8, 16, 32], n) for n in (1, 2, 3, 9)] == [
        (4, 8, 16, 32),
        (2, 4, 8, 16),
        (2, 2, 4, 8),
        (2, 2, 2, 2),
    ]
    assert schedule.local([16], 1) == (32,)


def test_only_stage_2_changes_the_plan() -> None:
    config = atlas.compose([*STAGE2, "stage2.decay=0.9", "chunk_size=c16"])
    assert [ChunkPlan.at_step(config, n).local for n in (0, 1, 2, 100)] == [(32,), (32,), (28,), (1,)]
    assert ChunkPlan.at_step(config, 100)[1:3] == (128, 128)
    assert ChunkPlan.at_step(atlas.compose(["chunk_size=c16"]), 100).local == (16,)


def test_the_experiment_watches_and_allows_three_rollbacks() -> None:
    config = atlas.compose(STAGE2)
    assert (config.stage2, config.rollback.limit) == (Stage2Config(enabled=True), 3)
    assert (config.rollback.enabled, "perplexity" in config.rollback.triggers) == (True, True)
    assert config.stage2.chunk(config.train.steps) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage2.start=0", "stage2.start=0: must be >= 1"),
        ("stage2.start=256", "stage2.start=256: must be <= chunk_size.shard=128"),
        ("stage2.decay=0", "stage2.decay=0.0: must be in (0, 1]"),
        ("stage2.decay=1.01", "stage2.decay=1.01: must be in (0, 1]"),
        ("stage2.floor=33", "stage2.floor=33: must be in [1, stage2.start=32]"),
        ("stage2.clip=0", "stage2.clip=0.0: must be > 0"),
        ("model=attention_only", "stage2.enabled=True: must be false with model.memory.enabled=false"),
        ("parallel=fsdp", "stage2.enabled=True: must be false with parallel.kind=fsdp (parallel.kind=ddp has Stage 2)"),
        (
            "device.compile=true",
            f"device.compile=True: must be false with {ON}: every chunk size would be compiled anew",
        ),
        (
            "device.graph=always",
            f"device.graph=always: must be auto or never with {ON}: "
            "a graph repeats the chunks that it was recorded with",
        ),
    ],
)
def test_what_cannot_work_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        atlas.compose([*STAGE2, override])
    assert str(refused.value) == message


@pytest.mark.parametrize("rule", ["omega", "atlas"])
def test_a_window_may_be_longer_than_the_last_chunk(rule: str) -> None:
    assert atlas.compose([*STAGE2, f"model.memory.rule={rule}"]).stage2.floor == 1
