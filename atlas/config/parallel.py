"""Settings of a run that several processes train together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from atlas.config.choices import Choices
from atlas.config.errors import require

LEAST_SECONDS, MOST_SECONDS = 1.0, 365 * 86_400.0  # connecting may take nearly one; torch holds a year


class ParallelKind(StrEnum):
    auto = "auto"  # ddp
    ddp = "ddp"  # every process holds all weights
    fsdp = "fsdp"  # every process holds a slice of all weights, gradients and moments


@dataclass
class ParallelConfig(Choices, prefix="parallel."):
    kind: ParallelKind = ParallelKind.auto
    context: int = 1  # processes that share a sequence, each with a part of whole shards
    start_timeout_s: float = 600.0  # a process that has not come until then keeps the run from starting
    step_timeout_s: float = 300.0  # a process that is later than this for a step ends the run

    def __post_init__(self) -> None:
        require(self.context >= 1, "parallel.context", self.context, ">= 1")
        allowed = "1 with parallel.kind=fsdp (parallel.kind=ddp cuts sequences)"
        require(self.context == 1 or self.kind is not ParallelKind.fsdp, "parallel.context", self.context, allowed)
        for key in ("start_timeout_s", "step_timeout_s"):
            seconds, allowed = getattr(self, key), f"in [{LEAST_SECONDS:.0f}, {MOST_SECONDS:.0f}] (a year)"
            require(is_timeout(seconds), f"parallel.{key}", seconds, allowed)

    def groups(self, processes: int) -> int:
        """The number of groups of processes that share their sequences. Raises `ConfigError`."""
        number = f"{processes} is no multiple of {self.context} (device.processes or the launcher sets it)"
        allowed = f"a divisor of the number of processes, and {number}"
        require(processes % self.context == 0, "parallel.context", self.context, allowed)
        return processes // self.context


def is_timeout(seconds: float) -> bool:
    return LEAST_SECONDS <= seconds <= MOST_SECONDS
