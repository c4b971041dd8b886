"""G2-4 and G2-5: whether the run was stable, and whether its memory recalls. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from atlas.config import LEVELS, RECALL
from experiments.phase2.checks.finding import Finding, failed, passed
from experiments.phase2.checks.record import RunRecord

STEPS_REQUIRED = 1000
ACCURACY_REQUIRED = 0.8
FINITE_KEYS = ("loss", "perplexity", "grad_norm")  # null in a row where the number was not finite


def judge_stability(record: RunRecord, steps_required: int = STEPS_REQUIRED) -> Finding:
    """G2-4: the run completed, was long enough, and nothing in it was ever not finite."""
    summary = record.summary
    numbers = {
        "exit_status": record.exit_status,
        "rows": len(record.rows),
        **({} if summary is None else _numbers_of_run(vars(summary))),
    }
    if record.trouble:
        return failed(record.trouble, f"the run is in {record.folder}", numbers=numbers)
    assert summary is not None
    broken = [row["step"] for row in record.rows if any(row.get(key) is None for key in FINITE_KEYS)]
    unfinite = [event["step"] + 1 for event in record.of_kind("spike") if event.get("trigger") == "non_finite"]
    numbers |= {"steps_not_finite": sorted({*broken, *unfinite})}
    if numbers["steps_not_finite"]:
        return failed(f"not finite at step {numbers['steps_not_finite'][0]}", numbers=numbers)
    if not record.rows or record.rows[-1]["step"] != summary.step:
        return failed("metrics.jsonl has no row of the last step", numbers=numbers)
    if not _finite(summary.validation_loss):
        return failed("no finite validation loss at the end", numbers=numbers)
    if summary.step < steps_required:
        return failed(f"{summary.step} steps of the {steps_required} that are required", numbers=numbers)
    told = f"{summary.step} steps, {len(record.rows)} rows, {summary.rollbacks} rollbacks"
    return passed("no NaN, no OOM", f"{told}, validation loss {summary.validation_loss:.4f}", numbers=numbers)


def judge_needles(record: RunRecord, steps_required: int = STEPS_REQUIRED) -> Finding:
    """G2-5: every level was measured at the run's last step, passed with its control, and lies above 80 %.

    The threshold is the requirement's, whatever `niah.threshold` says.
    """
    summary = record.summary
    if record.trouble or summary is None:
        return failed(f"not measured: the run is {record.trouble}")
    at_end = {event["level"] for event in record.of_kind("probe") if event["step"] == summary.step}
    results = {level: summary.niah[level] for level in LEVELS if level in summary.niah and level in at_end}
    evidence = tuple(f"{level}: {result['verdict']}" for level, result in results.items())
    numbers = {level: _numbers_of_level(result) for level, result in results.items()}
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


def _numbers_of_level(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result.get(key) for key in ("outcome", "accuracy", "control", "chance", "key_blind", "threshold")}


def _numbers_of_run(summary: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("status", "step", "rollbacks", "loss", "validation_loss", "tokens_per_second", "peak_memory_bytes")
    return {key: summary[key] for key in keys}


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and isfinite(value)
