"""G2-4, G2-5 and G2-7: was the run stable, does its memory recall, is `ppl_delta` in metrics.jsonl?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from atlas.config import LEVELS, RECALL, ConfigError
from atlas.training.rollback.history import History, Reading
from experiments.phase2.evidence import CheckedRun
from experiments.phase2.finding import Finding, failed, passed

STEPS_REQUIRED = 1000
ACCURACY_REQUIRED = 0.8
FINITE_KEYS = ("loss", "perplexity", "grad_norm")  # null in a row where the number was not finite
RUN_NUMBERS = ("status", "step", "rollbacks", "loss", "validation_loss", "tokens_per_second", "peak_memory_bytes")
LEVEL_NUMBERS = ("outcome", "accuracy", "control", "chance", "key_blind", "threshold")
PPL_DELTA = "ppl_delta"
PPL_TOLERANCE = 1e-9


def judge_stability(run: CheckedRun, steps_required: int = STEPS_REQUIRED) -> Finding:
    """G2-4: the run completed, was long enough, and nothing in it was ever not finite."""
    summary = run.summary
    numbers = {
        "exit_status": run.exit_status,
        "rows": len(run.rows),
        **({} if summary is None else {key: vars(summary)[key] for key in RUN_NUMBERS}),
    }
    if run.trouble:
        return failed(run.trouble, f"the run is in {run.folder}", numbers=numbers)
    assert summary is not None
    broken = [row["step"] for row in run.rows if any(row.get(key) is None for key in FINITE_KEYS)]
    unfinite = [event["step"] + 1 for event in run.of_kind("spike") if event.get("trigger") == "non_finite"]
    numbers |= {"steps_not_finite": sorted({*broken, *unfinite})}
    if numbers["steps_not_finite"]:
        return failed(f"not finite at step {numbers['steps_not_finite'][0]}", numbers=numbers)
    if not run.rows or run.rows[-1]["step"] != summary.step:
        return failed("metrics.jsonl has no row of the last step", numbers=numbers)
    if not _finite(summary.validation_loss):
        return failed("no finite validation loss at the end", numbers=numbers)
    if summary.step < steps_required:
        return failed(f"{summary.step} steps of the {steps_required} that are required", numbers=numbers)
    counts = f"{summary.step} steps, {len(run.rows)} rows, {summary.rollbacks} rollbacks"
    return passed("no NaN, no OOM", f"{counts}, validation loss {summary.validation_loss:.4f}", numbers=numbers)


def judge_needles(run: CheckedRun, steps_required: int = STEPS_REQUIRED) -> Finding:
    """G2-5: every level was measured at the run's last step, passed with its control, and lies above 80 %.

    The threshold is the requirement's, whatever `niah.threshold` says.
    """
    summary = run.summary
    if run.trouble or summary is None:
        return failed(f"not measured: the run is {run.trouble}")
    at_end = {event["level"] for event in run.of_kind("probe") if event["step"] == summary.step}
    results = {level: summary.niah[level] for level in LEVELS if level in summary.niah and level in at_end}
    evidence = tuple(f"{level}: {result['verdict']}" for level, result in results.items())
    numbers = {level: {key: result.get(key) for key in LEVEL_NUMBERS} for level, result in results.items()}
    complaints = [f"after {summary.step} steps, {steps_required} are required" if summary.step < steps_required else ""]
    complaints += [_complaint(level, results.get(level)) for level in reversed(LEVELS)]  # recall tells most
    if any(complaints):
        return failed("; ".join(filter(None, complaints)), *evidence, numbers=numbers)
    return passed(f"{results[RECALL.name]['accuracy']:.1%} > {ACCURACY_REQUIRED:.0%}", *evidence, numbers=numbers)


def _complaint(level: str, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return f"{level} not measured at the last step"
    accuracy, control = result["accuracy"], result["control"]
    if result["outcome"] == "not_measured" or not _finite(accuracy) or not _finite(control):
        return f"{level} not measured: {result['reason']}"
    if not accuracy > ACCURACY_REQUIRED:
        text = LEVELS[level].unit.text
        return f"{level} {text(accuracy)}, wanted > {text(ACCURACY_REQUIRED)}, memory off {text(control)}"
    return "" if result["outcome"] == "passed" else f"{level} {result['outcome']}: {result['reason']}"


def judge_ppl_delta(run: CheckedRun, readings: Sequence[Reading]) -> Finding:
    """`readings` are those of the run's last checkpoint (`last_readings`): the perplexities behind the series."""
    if run.summary is None or not run.rows:
        return failed(f"no rows to read: {run.trouble or 'metrics.jsonl is empty'}")
    last, every = run.summary.step, run.config.telemetry.every
    missing = sorted({*range(every, last + 1, every), last} - {row["step"] for row in run.rows})
    if missing:
        return failed(f"no row of step {missing[0]}", f"{len(missing)} rows that were due are missing")
    first = run.config.rollback.watch_every  # the first regular reading
    measured = [row for row in run.rows if row["step"] >= first]
    absent = [row["step"] for row in run.rows if PPL_DELTA not in row]
    unknown = [row["step"] for row in measured if not _finite(row.get(PPL_DELTA))]
    if absent or unknown:
        which = f"absent at step {absent[0]}" if absent else f"not finite at step {unknown[0]}"
        return failed(f"{PPL_DELTA} {which}", f"{len(absent)} rows without it, {len(unknown)} without a finite value")
    if not measured:
        return failed(f"the run ended before the first reading, at step {first}")
    deltas = [row[PPL_DELTA] for row in measured]
    numbers: dict[str, Any] = {"rows": len(deltas), "last": deltas[-1], "highest": max(deltas)}
    return _compare(run, measured, readings, numbers)


def last_readings(run: CheckedRun) -> list[Reading]:
    """The perplexities that the run watched, from its last checkpoint; none where there is no sound one."""
    from atlas.runs.start import find_checkpoint  # imports torch

    try:
        payload, _, _ = find_checkpoint(run.folder, "run")
    except ConfigError:
        return []
    return [Reading(**reading) for reading in payload["history"]["readings"]]


def _compare(
    run: CheckedRun, rows: Sequence[dict[str, Any]], readings: Sequence[Reading], numbers: dict[str, Any]
) -> Finding:
    """Rows against the series computed again; after a spike the tracker's state is not that of its readings alone."""
    if run.of_kind("spike"):
        return passed("", f"{len(rows)} rows; not computed again, since the run had a spike", numbers=numbers)
    history = History(run.config.rollback)
    again = {
        reading.step: history.add_perplexity(reading.step, reading.value).delta
        for reading in readings
        if reading.kind == "perplexity"
    }
    if not again:
        return failed("no readings in the last checkpoint to compare with", numbers=numbers)
    apart = 0.0
    for row in rows:
        newest = max((step for step in again if step <= row["step"]), default=None)
        if newest is None:
            return failed(f"a row of step {row['step']} before the first reading kept", numbers=numbers)
        apart = max(apart, abs(row[PPL_DELTA] - again[newest]))
    numbers |= {"readings": len(again), "largest_difference": apart}
    if not apart <= PPL_TOLERANCE:
        return failed(f"rows differ from the tracker's series by {apart:.1e}", numbers=numbers)
    return passed("", f"{len(rows)} rows equal the series of {len(again)} readings", numbers=numbers)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)
