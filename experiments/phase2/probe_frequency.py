"""How often may the probes run? The rule of P2-T2 (protocol 4.2), its evidence and its tables.

With p seconds a probe and s seconds a training step, a probe every n steps takes the share p / (p + n s) of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from atlas.config import require
from experiments.phase2.decision import DecisionOutcome, EvidenceTable, ProtocolDecision
from experiments.phase2.defaults import default_config
from experiments.phase2.recorded import Count, NotNegative, Positive, PositiveCount
from experiments.phase2.sweeps import (
    RecordedJob,
    RecordedSweep,
    require_once_a_round,
    require_rounds,
    require_same_settings,
    require_sound,
)

FREQUENCIES = (500, 1000, 2000)  # steps
OVERHEAD_MAX = 0.01
PROBES_MIN = 3  # of all runs together
VARIED = ("niah.every", "niah.enabled")
RULE = (
    f"Frequencies: a probe every {', '.join(map(str, FREQUENCIES))} steps. Overhead = probe seconds / (probe seconds"
    " + training seconds) from the clocks inside the runs. Where no run has that very frequency it is derived: with"
    " p seconds a probe and s seconds a step, p / (p + n s) at every n steps. It is checked against runs without"
    " probes of as many steps: what a run with probes takes longer by the wall clock, divided among its probes,"
    f" takes the place of p. Both must be below {OVERHEAD_MAX:.0%}. Of the frequencies that pass the most frequent"
    f" is chosen; if none does, {FREQUENCIES[-1]} and flagged."
)


@dataclass(frozen=True)
class ProbeRun:
    """One job. Seconds are of the run's own clocks; `wall_seconds` from its start event to its end event."""

    job: Count
    round: Count
    every: PositiveCount | None  # steps; None = without probes
    steps: PositiveCount
    probes: Count
    probe_seconds: NotNegative
    train_seconds: Positive
    wall_seconds: Positive


@dataclass(frozen=True)
class ProbeCosts:
    """Mean seconds of a probe and of a training step over the runs they come from."""

    probes: int
    probe_seconds: float
    steps: int
    step_seconds: float
    wall_probe_seconds: float  # what runs with probes took longer than runs without, per probe; median of the rounds


@dataclass(frozen=True)
class Overhead:
    """Share of the time at one frequency: over all runs used, lowest and highest of single runs, by the wall clock."""

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


def gather(sweeps: Sequence[RecordedSweep]) -> list[ProbeRun]:
    """Raises `ConfigError` for runs that are unfinished, of different machines or settings, or not interleaved."""
    jobs = sweeps[0].jobs
    require_sound(jobs)
    require_same_settings(jobs, VARIED)
    require_rounds(jobs, _frequency)
    return [_probe_run(job) for job in jobs]


def _frequency(job: RecordedJob) -> int | None:
    return int(job.settings["niah.every"]) if job.settings["niah.enabled"] else None


def _probe_run(job: RecordedJob) -> ProbeRun:
    seconds = job.summary["seconds"]
    return ProbeRun(
        job=job.job,
        round=job.round,
        every=_frequency(job),
        steps=job.summary["step"],
        probes=len({event["step"] for event in job.events if event["kind"] == "probe"}),
        probe_seconds=seconds.get("probe", 0.0),
        train_seconds=seconds["train"],
        wall_seconds=round(job.times("end")[-1] - job.times("start")[0], 3),
    )


def decide(evidence: Sequence[ProbeRun]) -> ProtocolDecision:
    """Raises `ConfigError` where the runs are too few to decide."""
    _require_enough(evidence)
    overheads = [overhead_at(every, evidence) for every in FREQUENCIES]
    passing = [overhead for overhead in overheads if overhead.decisive < OVERHEAD_MAX]
    chosen = passing[0] if passing else overheads[-1]
    headline = f"{chosen.every} steps, {chosen.share:.1%} overhead"
    flag = "" if passing else f", flagged: >= {OVERHEAD_MAX:.0%}"
    closing = (
        f"{chosen.every} is the most frequent below {OVERHEAD_MAX:.0%}."
        if passing
        else f"None is below {OVERHEAD_MAX:.0%}: {chosen.every} is the least frequent."
    )
    reason = " ".join([_measured(evidence), *map(_line, overheads), closing])
    advice = f"Probe every {headline}{flag} (niah.every={chosen.every}). {_beside_default(chosen.every)}"
    return ProtocolDecision(DecisionOutcome.locked, headline + flag, reason, advice, bool(passing))


def _beside_default(chosen: int) -> str:
    default = default_config().niah.every
    if default == chosen:
        return "That is the default."
    return f"The default is niah.every={default}, which probes {'less' if default > chosen else 'more'} often."


def _require_enough(evidence: Sequence[ProbeRun]) -> None:
    with_probes = _with_probes(evidence)
    require(len(with_probes) > 0, "runs with probes", 0, "at least one")
    rounds = {run.round for run in _without_probes(evidence)}
    for run in with_probes:
        allowed = "a run without probes (niah.enabled=false) of the same round beside it"
        require(run.round in rounds, f"job {run.job} round", run.round, allowed)
        require(run.probes > 0, f"job {run.job} niah.every", run.every, f"<= {run.steps}, the steps of the run")
        require(run.probe_seconds > 0, f"job {run.job} probe_seconds", run.probe_seconds, "> 0, for it ran probes")
    require_once_a_round(evidence, lambda run: "no probes" if run.every is None else f"a probe every {run.every} steps")
    probes = sum(run.probes for run in with_probes)
    require(probes >= PROBES_MIN, "probes", probes, f">= {PROBES_MIN} in all runs together")


def overhead_at(every: int, evidence: Sequence[ProbeRun]) -> Overhead:
    """Measured by runs of this frequency where there are some, else derived from all runs with probes."""
    direct = [run for run in evidence if run.every == every]
    runs = direct or _with_probes(evidence)
    costs = _costs(runs, _without_probes(evidence))
    singles = [_share(run.probe_seconds / run.probes, every, run.train_seconds / run.steps) for run in runs]
    return Overhead(
        every,
        bool(direct),
        _share(costs.probe_seconds, every, costs.step_seconds),
        min(singles),
        max(singles),
        _share(costs.wall_probe_seconds, every, costs.step_seconds),
    )


def _costs(runs: Sequence[ProbeRun], plain: Sequence[ProbeRun]) -> ProbeCosts:
    """Of `runs` with probes, checked against `plain` runs without: one a round, of as many steps."""
    probes, steps = sum(run.probes for run in runs), sum(run.steps for run in runs)
    without = {run.round: run for run in plain}
    longer = [(run.wall_seconds - without[run.round].wall_seconds) / run.probes for run in runs]
    return ProbeCosts(
        probes,
        sum(run.probe_seconds for run in runs) / probes,
        steps,
        sum(run.train_seconds for run in runs) / steps,
        max(median(longer), 0.0),
    )


def _share(probe_seconds: float, every: int, step_seconds: float) -> float:
    return probe_seconds / (probe_seconds + every * step_seconds)


def _with_probes(evidence: Sequence[ProbeRun]) -> list[ProbeRun]:
    return [run for run in evidence if run.every is not None]


def _without_probes(evidence: Sequence[ProbeRun]) -> list[ProbeRun]:
    return [run for run in evidence if run.every is None]


def _measured(evidence: Sequence[ProbeRun]) -> str:
    with_probes = _with_probes(evidence)
    costs = _costs(with_probes, _without_probes(evidence))
    rounds = len({run.round for run in with_probes})
    return (
        f"Measured in {len(with_probes)} runs with probes in {rounds} rounds: {costs.probes} probes of"
        f" {costs.probe_seconds:.2f} s and {costs.steps:,} steps of {costs.step_seconds:.3f} s; by the wall clock a"
        f" probe made its run {costs.wall_probe_seconds:.2f} s longer."
    )


def _line(overhead: Overhead) -> str:
    return (
        f"Every {overhead.every} steps: {overhead.share:.2%} ({_how(overhead)}), {overhead.wall:.2%} by the wall clock."
    )


def _how(overhead: Overhead) -> str:
    return "measured" if overhead.measured else "derived"


def tables(evidence: Sequence[ProbeRun]) -> list[EvidenceTable]:
    overheads = [
        [
            f"{one.every:,} steps",
            f"{one.share:.2%}",
            f"{one.low:.2%} to {one.high:.2%}",
            f"{one.wall:.2%}",
            _how(one),
        ]
        for one in (overhead_at(every, evidence) for every in FREQUENCIES)
    ]
    runs = [
        [
            str(run.round),
            "none" if run.every is None else f"every {run.every} steps",
            f"{run.steps:,}",
            str(run.probes),
            f"{run.probe_seconds / run.probes:.2f}" if run.probes else "-",
            f"{run.train_seconds / run.steps:.3f}",
            f"{run.wall_seconds:.1f}",
        ]
        for run in evidence
    ]
    note = (
        "Overhead: probe seconds over probe and training seconds. Derived: from the mean seconds of a probe and of a"
        " training step in the runs below. By the wall clock: what runs with probes took longer than runs without."
    )
    columns = ("a probe every", "overhead", "single runs", "by the wall clock", "how")
    head = ("round", "probes", "steps", "probes run", "seconds a probe", "seconds a step", "wall seconds")
    return [
        EvidenceTable("Overhead", columns, overheads, note),
        EvidenceTable("Runs", head, runs, "In the order they ran."),
    ]
