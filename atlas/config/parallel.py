"""Settings of a run that several processes train together."""

from __future__ import annotations

from dataclasses import dataclass

from atlas.config.errors import require


@dataclass
class ParallelConfig:
    step_timeout_s: float = 300.0  # a process that is later than this for a step ends the run

    def __post_init__(self) -> None:
        require(self.step_timeout_s > 0, "parallel.step_timeout_s", self.step_timeout_s, "> 0")
