"""Above which perplexity delta is a run in trouble? The rule of protocol 4.3, its evidence and its tables.

A run with rollback=observe writes its distribution of ppl_delta; `atlas/training/rollback/threshold.py` has the
statistics. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from atlas.config import require
from atlas.config.untrusted import read_json
from atlas.training.rollback.threshold import (
    CEILING,
    FLOOR,
    PERCENTILE,
    READINGS_MIN,
    STEEP,
    THRESHOLD_FILE,
    quarters,
    steep_readings,
    suggest_threshold,
)
from experiments.phase2.decision import DecisionOutcome, EvidenceTable, ProtocolDecision
from experiments.phase2.recorded import Count, PositiveCount
from experiments.phase2.sweeps import RecordedJob, RecordedSweep, require_same_settings, require_sound

FORMER_FILE = "rollback_calibration.json"  # the name of THRESHOLD_FILE in older runs
SEEDS_MIN = 3
RULE = (
    f"At least {SEEDS_MIN} runs that differ in the seed alone, watched and never rolled back (rollback=observe), with"
    f" at least {READINGS_MIN} readings each after the warm-up. ppl_delta is the share by which a reading of the"
    " perplexity is above its moving average. Where the perplexity falls steeply, readings are far below it, and a rise"
    " above the descent stays there too: the quarters of its readings with which a run begins are left out while their"
    f" median is below {STEEP:.0%}. If fewer than {READINGS_MIN} are left of a run, it is still falling: NOT DECIDED."
    " (This part was added to the rule after the runs of 2026-11-26, which give the same threshold without it.)"
    " Of the readings left of all runs together: threshold = 99th percentile + root mean square of the readings above"
    " 0. It stands for the standard deviation of protocol 4.3: taken about 0 and of these readings alone, since those"
    " below 0, the moving average, show a run that learns."
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

    @property
    def level(self) -> Sequence[float]:
        """The readings after the steep descent."""
        return self.deltas[steep_readings(self.deltas) :]


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
    found, falling = _pooled(evidence), [run for run in evidence if len(run.level) < READINGS_MIN]
    if falling:
        headline = f"still falling: {_seeds(falling)}"
        reason = (
            f"The perplexity falls steeply: {_steepness(falling)}."
            f" Readings left: {', '.join(str(len(run.level)) for run in falling)}; needed: {READINGS_MIN}."
        )
        advice = f"No rollback threshold is locked: {headline}. Longer runs decide (train.steps)."
        return ProtocolDecision(DecisionOutcome.undecided, headline, reason, advice, False)
    suggested, threshold = found["percentile_plus_deviation"], found["threshold"]
    steep = [run for run in evidence if len(run.level) < len(run.deltas)]
    reason = (
        f"Over {found['readings']} readings of {len(evidence)} runs the 99th percentile of ppl_delta is"
        f" {found['percentile_99']:.2%} and the root mean square of the readings above 0"
        f" {found['deviation_above']:.2%}: {suggested:.2%} together."
    )
    if steep:
        reason += f" Left out is the steep descent at the start: {_steepness(steep)}."
    reason += f" The median of the readings that count is {found['quantiles']['0.5']:+.2%}."
    if threshold is None:
        headline = f"unstable: {suggested:.1%} > {CEILING:.0%}"
        advice = f"No rollback threshold is locked: calm runs are {headline}."
        return ProtocolDecision(DecisionOutcome.stop, headline, reason, advice, False)
    told = f"measured {suggested:.1%}" + (f", the least is {FLOOR:.0%}" if suggested < FLOOR else "")
    headline = f"rollback.threshold={threshold:.3f}, {told}"
    advice = f"Roll back at rollback.threshold={threshold:.3f} ({told})."
    return ProtocolDecision(DecisionOutcome.locked, headline, reason, advice, True)


def _seeds(evidence: Sequence[ObservedRun]) -> str:
    return f"seed{'s' * (len(evidence) > 1)} {', '.join(str(run.seed) for run in evidence)}"


def _steepness(evidence: Sequence[ObservedRun]) -> str:
    """What is left out of each run, and how steep it is."""
    told = []
    for run in evidence:
        steep = run.deltas[: steep_readings(run.deltas)]
        told.append(f"seed {run.seed} {len(steep)} of {len(run.deltas)} readings, median {median(steep):+.2%}")
    return "; ".join(told)


def _pooled(evidence: Sequence[ObservedRun]) -> dict[str, Any]:
    return suggest_threshold([delta for run in evidence for delta in run.level])


def tables(evidence: Sequence[ObservedRun]) -> list[EvidenceTable]:
    rows = []
    found = [(str(run.seed), f"{run.steps:,}", run.deltas, suggest_threshold(run.level)) for run in evidence]
    everything = [delta for run in evidence for delta in run.deltas]
    for seed, steps, deltas, one in [*found, ("all", "", everything, _pooled(evidence))]:
        quantiles = [one["quantiles"].get(key) for key in ("0.05", "0.5", "0.95", str(PERCENTILE), "1.0")]
        shown = [*quantiles, one["deviation_above"], one["percentile_plus_deviation"]]
        counts = str(one["readings"]), str(len(deltas) - one["readings"])
        rows.append([seed, steps, *counts, *("-" if value is None else f"{value:+.2%}" for value in shown)])
    head = ("seed", "steps", "readings", "left out", "5 %", "50 %", "95 %", "99 %", "highest", "RMS above 0", "sum")
    note = (
        "Quantiles of ppl_delta after the warm-up and the steep descent. RMS above 0: root mean square of the readings"
        " above 0. Sum: of the 99th percentile and it."
    )
    descent = [[str(run.seed), *(f"{middle:+.2%}" for _, middle in quarters(run.deltas))] for run in evidence]
    return [
        EvidenceTable("Distribution of ppl_delta", head, rows, note),
        EvidenceTable(
            "How steeply the perplexity falls",
            ("seed", "1st quarter", "2nd quarter", "3rd quarter", "4th quarter"),
            descent,
            f"Median of ppl_delta in each quarter of the readings; below {STEEP:.0%} it is steep.",
        ),
    ]
