"""Records of runs as they are left behind, made without running them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.config import LEVELS, DebugConfig, RunConfig
from atlas.probes.result import judge
from atlas.runs.summary import RunSummary
from atlas.training.rollback.history import Reading
from experiments.phase2.evidence import CheckedRun

STEPS = 1000
Made = Callable[..., CheckedRun]


def niah_results(**accuracies: float | None) -> dict[str, Any]:
    """The results of every level as a run's summary holds them, by `judge`, the only one that makes them."""
    found = dict.fromkeys(LEVELS, 0.94) | {"recall": 0.875} | accuracies
    return {
        level: judge(
            step=STEPS,
            level=level,
            threshold=0.8,
            accuracy=found[level],
            control=0.05,
            chance=0.0625,
            key_blind=0.4,
            certain=0.5,
        ).describe()
        for level in LEVELS
    }


@cache
def default_config() -> RunConfig:
    return atlas.compose(["logger=none"])


@pytest.fixture
def results() -> Callable[..., dict[str, Any]]:
    return niah_results


@pytest.fixture
def made() -> Made:
    """A completed run of 1000 steps, with a row every 100 and a reading every 20; what is given replaces its own."""

    def make(
        *, inject: str | None = None, events: list[dict[str, Any]] | None = None, exit_status: int = 0, **summary: Any
    ) -> CheckedRun:
        config = replace(default_config(), debug=DebugConfig(inject))
        deltas = {reading.step: reading.delta for reading in readings()}
        rows = [
            {"step": step, "segment": 0, "loss": 2.0, "perplexity": 7.4, "grad_norm": 0.5, "ppl_delta": deltas[step]}
            | {"validation/loss": 3.0 - step / STEPS}
            for step in range(100, STEPS + 1, 100)
        ]
        probes = [{"kind": "probe", "step": STEPS, "level": level} for level in LEVELS]
        told = {"status": "completed", "step": STEPS, "steps": STEPS, "validation_loss": 1.4, "config_hash": "same"}
        found = RunSummary("run", **(told | {"niah": niah_results()} | summary))
        return CheckedRun(Path("run"), exit_status, config, found, rows, [*probes, *(events or [])])

    return make


def readings() -> list[Reading]:
    """A perplexity that falls, every 20 steps; the deltas by the formula of `PPLDeltaTracker`, written out."""
    found: list[Reading] = []
    average = 0.0
    for count, step in enumerate(range(20, STEPS + 1, 20)):
        value = 10 - step / 200 + (0.05 if count % 3 else 0.0)
        delta = (value - average) / average if count else 0.0
        weight = max(1 - 0.6, 1 / (count + 1))
        average = value if step <= 100 or not count else average + weight * (value - average)
        found.append(Reading("perplexity", step, False, value, delta))
    return found


@pytest.fixture(name="readings")
def recorded_readings() -> list[Reading]:
    return readings()
