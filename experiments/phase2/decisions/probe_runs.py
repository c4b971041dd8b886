"""Runs of the probe-frequency sweep as evidence, and the overhead that follows from their clocks.

With p seconds a probe and s seconds a training step, a probe every n steps takes the share p / (p + n s).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

FREQUENCIES = (500, 1000, 2000)  # steps


@dataclass(frozen=True)
class ProbeRun:
    """One job. Seconds are of the run's own clocks; `wall_seconds` from its start event to its end event."""

    job: int
    round: int
    every: int | None  # steps; None = without probes
    steps: int
    probes: int
    probe_seconds: float
    train_seconds: float
    wall_seconds: float


@dataclass(frozen=True)
class Overhead:
    """At one frequency: by the clocks of all runs used, lowest and highest of single runs, and by the wall clock."""

    every: int
    measured: bool  # by runs of this very frequency; else derived from probes and steps of another
    share: float
    low: float
    high: float
    wall: float

    @property
    def decisive(self) -> float:
        """The larger of both clocks: what a probe costs outside of its own clock counts as well."""
        return max(self.share, self.wall)


@dataclass(frozen=True)
class Costs:
    """Seconds of a probe and of a training step, over all runs they come from."""

    probes: int
    probe_seconds: float  # of one, mean
    steps: int
    step_seconds: float  # of one, mean
    wall_probe_seconds: float  # of one: what runs with probes took longer than runs without, median of the rounds


def probed(evidence: Sequence[ProbeRun]) -> list[ProbeRun]:
    return [run for run in evidence if run.every is not None]


def costs(runs: Sequence[ProbeRun], plain: Sequence[ProbeRun]) -> Costs:
    """Of `runs` with probes, checked against `plain` runs without: one a round, of as many steps."""
    probes, steps = sum(run.probes for run in runs), sum(run.steps for run in runs)
    without = {run.round: run for run in plain}
    longer = [(run.wall_seconds - without[run.round].wall_seconds) / run.probes for run in runs]
    return Costs(
        probes,
        sum(run.probe_seconds for run in runs) / probes,
        steps,
        sum(run.train_seconds for run in runs) / steps,
        max(median(longer), 0.0),
    )


def overhead_at(every: int, evidence: Sequence[ProbeRun]) -> Overhead:
    """Measured by runs of this frequency where there are some, else derived from all runs with probes."""
    direct = [run for run in evidence if run.every == every]
    runs = direct or probed(evidence)
    found = costs(runs, [run for run in evidence if run.every is None])
    singles = [_share(run.probe_seconds / run.probes, every, run.train_seconds / run.steps) for run in runs]
    return Overhead(
        every,
        bool(direct),
        _share(found.probe_seconds, every, found.step_seconds),
        min(singles),
        max(singles),
        _share(found.wall_probe_seconds, every, found.step_seconds),
    )


def _share(probe_seconds: float, every: int, step_seconds: float) -> float:
    return probe_seconds / (probe_seconds + every * step_seconds)
