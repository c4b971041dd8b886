"""Above which perplexity delta is a run in trouble? The rule of protocol 4.3, its evidence and its tables.

A run with rollback=observe writes its distribution of ppl_delta; `atlas/training/watch/rollback_threshold.py` has the
statistics. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atlas.config import require
from atlas.config.untrusted import read_json
from atlas.training.watch.rollback_threshold import (
    CEILING,
    FLOOR,
    FORMER_FILE,
    PERCENTILE,
    READINGS_MIN,
    THRESHOLD_FILE,
    suggest_threshold,
)
from experiments.phase2.decision import DecisionOutcome, EvidenceTable, ProtocolDecision
from experiments.phase2.recorded import Count, PositiveCount
from experiments.phase2.sweeps import RecordedJob, RecordedSweep, require_same_settings, require_sound

SEEDS_MIN = 3
RULE = (
    f"At least {SEEDS_MIN} runs that differ in the seed alone, watched and never rolled back (rollback=observe), with"
    f" at least {READINGS_MIN} readings each after the warm-up. ppl_delta is the share by which a reading of the"
    " perplexity is above its moving average. Of the readings of all runs together: threshold = 99th percentile + root"
    " mean square of the readings above 0. It stands for the standard deviation of protocol 4.3: taken about 0 and of"
    " these readings alone, since those below 0, the moving average, show a run that learns."
    f" If that sum is below {FLOOR:.0%}, the threshold is {FLOOR:.0%}. If it is above {CEILING:.0%}, the"
    " decision is STOP: the runs are unstable."
)


@dataclass(frozen=True)
class ObservedRun:
    """One job. `deltas` are its readings of ppl_delta after the warm-up, in their order."""

    job: Count
    seed: int
    steps: PositiveCount
    deltas: Sequence[float]


def gather(sweeps: Sequence[RecordedSweep]) -> list[ObservedRun]:
    """Raises `ConfigError` for runs that are unfinished, were not observed, or differ in more than the seed."""
    jobs = sweeps[0].jobs
    require_sound(jobs, timed=False)
    require_same_settings(jobs, ("seed",))
    observed = jobs[0].settings["rollback.observe"]
    require(observed, "rollback.observe", observed, "true: a rollback changes what is measured")
    return [_observed_run(job) for job in jobs]


def _observed_run(job: RecordedJob) -> ObservedRun:
    path = job.folder / THRESHOLD_FILE
    found = read_json(path if path.exists() else job.folder / FORMER_FILE)
    return ObservedRun(job.job, job.settings["seed"], job.summary["step"], found["deltas"])


def decide(evidence: Sequence[ObservedRun]) -> ProtocolDecision:
    """Raises `ConfigError` where the runs are too few or too short to decide."""
    seeds = sorted(run.seed for run in evidence)
    require(len(set(seeds)) >= SEEDS_MIN, "seed", seeds, f"at least {SEEDS_MIN} different values")
    require(len(set(seeds)) == len(seeds), "seed", seeds, "another one for each run")
    for run in evidence:
        readings = len(run.deltas)
        require(readings >= READINGS_MIN, f"job {run.job} readings", readings, f">= {READINGS_MIN} after the warm-up")
    found = _pooled(evidence)
    suggested, threshold = found["percentile_plus_deviation"], found["threshold"]
    reason = (
        f"Over {found['readings']} readings of {len(evidence)} runs the 99th percentile of ppl_delta is"
        f" {found['percentile_99']:.2%} and the root mean square of the readings above 0"
        f" {found['deviation_above']:.2%}: {suggested:.2%} together."
    )
    if threshold is None:
        headline = f"unstable: {suggested:.1%} > {CEILING:.0%}"
        advice = f"No rollback threshold is locked: calm runs are {headline}."
        return ProtocolDecision(DecisionOutcome.stop, headline, reason, advice, False)
    told = f"measured {suggested:.1%}" + (f", the least is {FLOOR:.0%}" if suggested < FLOOR else "")
    headline = f"rollback.threshold={threshold:.3f}, {told}"
    advice = f"Roll back at rollback.threshold={threshold:.3f} ({told})."
    return ProtocolDecision(DecisionOutcome.locked, headline, reason, advice, True)


def _pooled(evidence: Sequence[ObservedRun]) -> dict[str, Any]:
    return suggest_threshold([delta for run in evidence for delta in run.deltas])


def tables(evidence: Sequence[ObservedRun]) -> list[EvidenceTable]:
    found = [(str(run.seed), f"{run.steps:,}", suggest_threshold(run.deltas)) for run in evidence]
    rows = []
    for seed, steps, one in [*found, ("all", "", _pooled(evidence))]:
        quantiles = [one["quantiles"][key] for key in ("0.05", "0.5", "0.95", str(PERCENTILE), "1.0")]
        shown = [*quantiles, one["deviation_above"], one["percentile_plus_deviation"]]
        rows.append([seed, steps, str(one["readings"]), *(f"{value:+.2%}" for value in shown)])
    head = ("seed", "steps", "readings", "5 %", "50 %", "95 %", "99 %", "highest", "RMS above 0", "sum")
    note = (
        "Quantiles of ppl_delta after the warm-up. RMS above 0: root mean square of the readings above 0. Sum: of the"
        " 99th percentile and it."
    )
    return [EvidenceTable("Distribution of ppl_delta", head, rows, note)]
