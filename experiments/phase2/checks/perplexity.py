"""G2-7: whether `ppl_delta` is in metrics.jsonl, at the cadence, and is what the run's own readings give."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from atlas.config import ConfigError, RollbackConfig
from atlas.training.watch.history import History, Reading
from experiments.phase2.checks.finding import Finding, failed, passed
from experiments.phase2.checks.record import RunRecord

KEY = "ppl_delta"
TOLERANCE = 1e-9


def judge_ppl_delta(record: RunRecord, readings: Sequence[Reading]) -> Finding:
    """`readings` are those of the run's last checkpoint (`last_readings`): the perplexities behind the series."""
    if record.summary is None or not record.rows:
        return failed(f"no rows to read: {record.trouble or 'metrics.jsonl is empty'}")
    due = _due_steps(record)
    missing = sorted(due - {row["step"] for row in record.rows})
    if missing:
        return failed(f"no row of step {missing[0]}", f"rows due and missing: {_some(missing)}")
    first = record.config.rollback.watch_every  # the first regular reading
    measured = [row for row in record.rows if row["step"] >= first]
    absent = [row["step"] for row in record.rows if KEY not in row]
    unknown = [row["step"] for row in measured if not _finite(row.get(KEY))]
    if absent or unknown:
        which = f"absent at step {absent[0]}" if absent else f"not finite at step {unknown[0]}"
        return failed(f"{KEY} {which}", f"{len(absent)} rows without it, {len(unknown)} without a finite value")
    if not measured:
        return failed(f"the run ended before the first reading, at step {first}")
    numbers: dict[str, Any] = {"rows": len(measured), "last": measured[-1][KEY], "highest": max(_deltas(measured))}
    return _compare(record, measured, readings, numbers)


def last_readings(record: RunRecord) -> list[Reading]:
    """The perplexities that the run watched, from its last checkpoint; none where there is no sound one."""
    from atlas.runs.start import find_checkpoint  # imports torch

    try:
        payload, _, _ = find_checkpoint(record.folder, "run")
    except ConfigError:
        return []
    return [Reading(**reading) for reading in payload["history"]["readings"]]


def replayed_deltas(readings: Sequence[Reading], settings: RollbackConfig) -> dict[int, float]:
    """Step -> delta of a new tracker that is given the same perplexities."""
    history = History(settings)
    watched = [reading for reading in readings if reading.kind == "perplexity"]
    return {reading.step: history.add_perplexity(reading.step, reading.value).delta for reading in watched}


def _compare(
    record: RunRecord, rows: Sequence[dict[str, Any]], readings: Sequence[Reading], numbers: dict[str, Any]
) -> Finding:
    """Rows against the series computed again; after a spike the tracker's state is not that of its readings alone."""
    if record.of_kind("spike"):
        return passed("", f"{len(rows)} rows; not computed again, since the run had a spike", numbers=numbers)
    again = replayed_deltas(readings, record.config.rollback)
    if not again:
        return failed("no readings in the last checkpoint to compare with", numbers=numbers)
    apart = 0.0
    for row in rows:
        newest = max((step for step in again if step <= row["step"]), default=None)
        if newest is None:
            return failed(f"a row of step {row['step']} before the first reading kept", numbers=numbers)
        apart = max(apart, abs(row[KEY] - again[newest]))
    numbers |= {"readings": len(again), "largest_difference": apart}
    if not apart <= TOLERANCE:
        return failed(f"rows differ from the tracker's series by {apart:.1e}", numbers=numbers)
    return passed("", f"{len(rows)} rows equal the series of {len(again)} readings", numbers=numbers)


def _due_steps(record: RunRecord) -> set[int]:
    """Steps whose row must be there: every `telemetry.every`, and the last."""
    assert record.summary is not None
    last = record.summary.step
    return {*range(record.config.telemetry.every, last + 1, record.config.telemetry.every), last}


def _deltas(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row[KEY] for row in rows]


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _some(steps: Sequence[int]) -> str:
    return ", ".join(str(step) for step in steps[:5]) + (", ..." if len(steps) > 5 else "")
