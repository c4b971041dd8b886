"""Was the machine quiet while runs were timed? Imports no torch.

Beside other work a time says as much about that work. So a check of times passes on a quiet machine only.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from experiments.phase2.chunk_runs import ChunkRun, measured_speeds
from experiments.phase2.probe_frequency import ProbeRun

OTHERS_MAX = 0.1  # of the time of all cores
SPREAD_MAX = 0.15  # of the median
LOAD_MAX = 0.25  # a core; counts where the use by others is not known
PROC_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Quiet:
    """How quiet it was."""

    load_before: float  # runnable processes in the minute before the gate
    cores: int
    others: float | None  # share of the cores' time that other processes used meanwhile; None = not known
    spread: float  # between rounds: highest less lowest, over the median; the largest of any candidate

    @property
    def sentence(self) -> str:
        others = "not known" if self.others is None else f"{self.others:.0%} (at most {OTHERS_MAX:.0%})"
        return (
            f"Load before: {self.load_before:.2f} on {self.cores} cores. Used by others meanwhile: {others}."
            f" Spread between rounds: {self.spread:.0%} (at most {SPREAD_MAX:.0%})."
        )

    @property
    def trouble(self) -> str:
        """Why its times are no evidence; "" if they are."""
        if self.others is not None and self.others > OTHERS_MAX:
            return f"the machine was not quiet: other processes used {self.others:.0%} of its cores' time"
        if self.others is None and self.load_before > LOAD_MAX * self.cores:
            return f"the machine was not quiet: its load before was {self.load_before:.2f} on {self.cores} cores"
        if self.spread > SPREAD_MAX:
            return f"the machine was not quiet: rounds differ by {self.spread:.0%}"
        return ""


class OthersClock:
    """From here on: what share of the cores' time is used by others than this process and those that it waited for."""

    def __init__(self) -> None:
        self._began = time.monotonic(), _seconds_of_others()

    def share(self) -> float | None:
        began, before = self._began
        now, after = time.monotonic(), _seconds_of_others()
        if before is None or after is None:
            return None
        return max(after - before, 0.0) / ((now - began) * len(cores()))


def spread_between_rounds(evidence: Sequence[Any]) -> float:
    """Of tokens/s at the context of the decision, or of the seconds of a step."""
    runs = [one for one in evidence if isinstance(one, ChunkRun)]
    if runs:
        return max(_spread(speed.rounds) for speed in measured_speeds(runs) if speed.context == runs[0].configured)
    return _spread([one.train_seconds / one.steps for one in evidence if isinstance(one, ProbeRun)])


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / median(values)


def cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _seconds_of_others() -> float | None:
    """Seconds that the cores have worked so far, less those of this process and of its children that have ended."""
    if not PROC_STAT.is_file():
        return None
    names, ticks = {f"cpu{core}" for core in cores()}, 0
    for line in PROC_STAT.read_text(encoding="ascii").splitlines():
        name, *counts = line.split()
        if name in names:
            user, nice, system, _idle, _wait, irq, soft_irq, *_ = (int(count) for count in counts)
            ticks += user + nice + system + irq + soft_irq
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return ticks / os.sysconf("SC_CLK_TCK") - sum(used.ru_utime + used.ru_stime for used in own)
