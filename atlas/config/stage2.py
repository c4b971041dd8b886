"""Settings of Stage 2, and its schedule: a function of the step alone, so that resume and rollback keep it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from atlas.config.errors import require


@dataclass
class Stage2Config:
    """Going on from a checkpoint with ever smaller chunks of the local memories (TNT section 4.2). Steps count from 1.

    chunk(n) = max(floor, floor(start * decay^(n - 1)))        limit(n) = clip * sqrt(start / chunk(n))
    """

    enabled: bool = False
    start: int = 32  # chunk of step 1 of the largest local memory, tokens; the others keep their ratio to it
    decay: float = 0.9993  # per step
    floor: int = 1  # smallest chunk
    clip: float = 0.5  # gradient norm at `start`, in place of train.gradient_clip

    def __post_init__(self) -> None:
        require(self.start >= 1, "stage2.start", self.start, ">= 1")
        require(0 < self.decay <= 1, "stage2.decay", self.decay, "in (0, 1]")
        require(1 <= self.floor <= self.start, "stage2.floor", self.floor, f"in [1, stage2.start={self.start}]")
        require(self.clip > 0, "stage2.clip", self.clip, "> 0")

    def chunk(self, step: int) -> int:
        """Of the largest local memory; before step 1 that of step 1."""
        return max(self.floor, int(self.start * self.decay ** max(step - 1, 0)))

    def local(self, trained: Sequence[int], step: int) -> tuple[int, ...]:
        """Chunks of all local memories, which have had the chunks `trained`."""
        chunk, largest = self.chunk(step), max(trained)
        return tuple(max(self.floor, size * chunk // largest) for size in trained)

    def notices(self, steps: int, former: Sequence[int] | None) -> list[str]:
        """What is odd about a schedule of `steps` that goes on from local memories with the chunks `former`."""
        found = []
        if former and self.start > max(former):
            found.append(
                f"Stage 2 begins with chunks of stage2.start={self.start}, larger than those of the run that it goes"
                f" on from, {max(former)}: they grow before they shrink (as it ended: stage2.start={max(former)})"
            )
        last = self.chunk(steps)
        if last > 1 and self.decay < 1:  # without decay it is the control, whose chunks stay
            found.append(
                f"Stage 2 ends with chunks of {last}, not of 1, the chunk of inference: stage2.decay={self.decay:g} is"
                f" too slow for train.steps={steps}, or stage2.floor={self.floor} too high"
            )
        return found

    def limit(self, step: int) -> float:
        """Of the global gradient norm."""
        return self.clip * sqrt(self.start / self.chunk(step))
