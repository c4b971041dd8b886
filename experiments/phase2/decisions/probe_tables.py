"""The evidence of the probe-frequency decision as tables for the reader."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.phase2.decisions.decision import Table
from experiments.phase2.decisions.probe_runs import FREQUENCIES, Overhead, ProbeRun, overhead_at


def tables(evidence: Sequence[ProbeRun]) -> list[Table]:
    return [_overheads(evidence), _runs(evidence)]


def _overheads(evidence: Sequence[ProbeRun]) -> Table:
    head = ("a probe every", "overhead", "single runs", "by the wall clock", "how")
    note = (
        "Overhead: probe seconds over probe and training seconds. Derived: from the mean seconds of a probe and of a"
        " training step in the runs below. By the wall clock: what runs with probes took longer than runs without."
    )
    return Table("Overhead", head, [_row(overhead_at(every, evidence)) for every in FREQUENCIES], note)


def _row(overhead: Overhead) -> list[str]:
    spread = f"{overhead.low:.2%} to {overhead.high:.2%}"
    how = "measured" if overhead.measured else "derived"
    return [f"{overhead.every:,} steps", f"{overhead.share:.2%}", spread, f"{overhead.wall:.2%}", how]


def _runs(evidence: Sequence[ProbeRun]) -> Table:
    rows = [
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
    head = ("round", "probes", "steps", "probes run", "seconds a probe", "seconds a step", "wall seconds")
    return Table("Runs", head, rows, "In the order they ran.")
