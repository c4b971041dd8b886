"""Settings of a sweep, `-m`: what happens when a job fails, and resuming an unfinished sweep."""

from __future__ import annotations

from dataclasses import dataclass

from atlas.config.errors import require

MOST_SEEDS = 10_000


@dataclass
class SweepConfig:
    resume: str | None = None  # folder of a sweep: its jobs that did not complete are run
    fail_fast: bool = False  # after the first job that fails no other is started
    seeds: int = 1  # every combination with seed=0 to seeds - 1; the report has means and spread
    round: int = 0  # number of a repeat; does nothing, so that a sweep can repeat its jobs in turn and compare timings

    def __post_init__(self) -> None:
        require(1 <= self.seeds <= MOST_SEEDS, "sweep.seeds", self.seeds, f"in [1, {MOST_SEEDS}]")
        require(self.round >= 0, "sweep.round", self.round, ">= 0")
