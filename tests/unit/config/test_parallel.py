"""Refusals of how several processes are to train one run: whole messages, before any work."""

from __future__ import annotations

import re

import pytest

import atlas
from atlas.config import ConfigError, ParallelKind

LEAST = "(least common multiple of train.accumulate=1 and 3 processes)"
REFUSED = {
    "device.processes=0": "device.processes=0: must be in [1, 64] (torchrun or Slurm starts those of several machines)",
    "device.processes=3": f"train.batch_size=8: must be a multiple of 3 {LEAST}",
    "parallel.kind=zero": "parallel.kind=zero: must be one of auto, ddp, fsdp",
    "parallel=zero": "parallel=zero: must be one of ddp, auto, fsdp",
    "parallel.context=2": (
        "parallel.context=2: must be 1: a sequence cannot be cut over several processes in this version"
    ),
    "parallel.start_timeout_s=0": "parallel.start_timeout_s=0.0: must be > 0",
    "parallel.step_timeout_s=-1": "parallel.step_timeout_s=-1.0: must be > 0",
    "checkpoint.layout=parts": "checkpoint.layout=parts: must be one of whole, sharded",
    "train.carry_memory=true": (
        "train.carry_memory=True: must be false with parallel.kind=fsdp (parallel.kind=ddp carries memories)"
    ),
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_several_processes_cannot_do_is_refused(override: str) -> None:
    given = ["parallel=fsdp", override] if override.startswith("train.carry") else [override]
    with pytest.raises(ConfigError, match=f"^{re.escape(REFUSED[override])}$"):
        atlas.compose(["train.batch_size=8", *given])


def test_the_options_of_the_group() -> None:
    assert [atlas.compose([f"parallel={name}"]).parallel.kind for name in ("auto", "ddp", "fsdp")] == list(ParallelKind)
