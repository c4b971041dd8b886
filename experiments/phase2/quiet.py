"""Was the machine quiet while runs were timed? Imports no torch.

Beside other work a time says as much about that work. So a check of times passes on a quiet machine only.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from atlas.config.atomic import write_atomically
from atlas.config.untrusted import read_json
from experiments.phase2.chunk_runs import ChunkRun, measured_speeds
from experiments.phase2.probe_frequency import ProbeRun
from experiments.phase2.recorded import NotNegative, PositiveCount, read_one
from experiments.phase2.sweeps import readable

OTHERS_MAX = 0.1  # of the time of all cores
SPREAD_MAX = 0.15  # of the median
LOAD_MAX = 0.25  # a core; counts where the use by others is not known
MACHINE_FILE = "machine.json"  # in the folder of a sweep that was timed by the gate
PROC_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Machine:
    """How much else it did while times were taken."""

    load_before: NotNegative  # runnable processes in the minute before
    cores: PositiveCount
    others: NotNegative | None  # share of the cores' time that other processes used meanwhile; None = not known

    @property
    def sentence(self) -> str:
        others = "not known" if self.others is None else f"{self.others:.0%} (at most {OTHERS_MAX:.0%})"
        return f"Load before: {self.load_before:.2f} on {self.cores} cores. Used by others meanwhile: {others}."

    @property
    def trouble(self) -> str:
        """Why its times are no evidence; "" if they are."""
        if self.others is not None and self.others > OTHERS_MAX:
            return f"the machine was not quiet: other processes used {self.others:.0%} of its cores' time"
        if self.others is None and self.load_before > LOAD_MAX * self.cores:
            return f"the machine was not quiet: its load before was {self.load_before:.2f} on {self.cores} cores"
        return ""


@dataclass(frozen=True)
class Spread:
    """Between rounds: highest less lowest, over the median."""

    share: float
    of: str  # what it is measured of


@dataclass(frozen=True)
class Quiet:
    """How quiet it was while a sweep ran."""

    machine: Machine | None  # None = nobody recorded it
    spread: Spread  # the largest

    @property
    def sentence(self) -> str:
        machine = self.machine.sentence if self.machine else "Load and use by others: not recorded with the sweep."
        spread = f"{self.spread.share:.0%}, {self.spread.of} (at most {SPREAD_MAX:.0%})"
        return f"{machine} Largest spread between rounds: {spread}."

    @property
    def trouble(self) -> str:
        """Why its times are no evidence; "" if they are."""
        if self.machine is None:
            return f"not recorded whether the machine was quiet: no {MACHINE_FILE} beside the sweep"
        if self.spread.share > SPREAD_MAX and not self.machine.trouble:
            return f"the machine was not quiet: rounds differ by {self.spread.share:.0%}, {self.spread.of}"
        return self.machine.trouble

    @property
    def numbers(self) -> dict[str, Any]:
        machine = asdict(self.machine) if self.machine else {"recorded": False}
        return machine | {"spread": self.spread.share, "spread_of": self.spread.of}


class MachineClock:
    """From here on: what else the machine does. `share` leaves out this process and those that it waited for."""

    def __init__(self, load_before: float | None = None) -> None:
        self.load_before = os.getloadavg()[0] if load_before is None else load_before
        self._began = time.monotonic(), _seconds_of_others()

    def share(self) -> float | None:
        began, before = self._began
        now, after = time.monotonic(), _seconds_of_others()
        if before is None or after is None:
            return None
        return max(after - before, 0.0) / ((now - began) * len(cores()))

    def read(self) -> Machine:
        return Machine(self.load_before, len(cores()), self.share())


def write_machine(machine: Machine, sweep: Path) -> None:
    """Beside the sweep that was timed meanwhile. Raises OSError."""
    write_atomically(sweep / MACHINE_FILE, json.dumps(asdict(machine)) + "\n")


def read_machine(sweep: Path) -> Machine | None:
    """What was recorded while the sweep ran; None where nothing was. Raises `ConfigError` for what cannot be read."""
    path = sweep / MACHINE_FILE
    if not path.exists():
        return None
    with readable(sweep):
        return read_one(Machine, read_json(path), str(path))


def spread_between_rounds(evidence: Sequence[Any]) -> Spread:
    """The largest of tokens/s over all contexts and candidates; or of the seconds of a step."""
    runs = [one for one in evidence if isinstance(one, ChunkRun)]
    if runs:
        found = [
            Spread(_spread(speed.rounds), f"{speed.candidate} at {speed.context:,} tokens")
            for speed in measured_speeds(runs)
        ]
        return max(found, key=lambda spread: spread.share)
    steps = [one.train_seconds / one.steps for one in evidence if isinstance(one, ProbeRun)]
    return Spread(_spread(steps), "seconds of a training step")


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
