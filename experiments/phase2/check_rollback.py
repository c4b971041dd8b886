"""G2-6: a forced spike is rolled back and overcome; its calm twin and the long run are never rolled back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.phase2.evidence import CheckedRun
from experiments.phase2.finding import Finding, failed, passed

LOSS = "validation/loss"


def judge_rollback(forced: CheckedRun, calm: CheckedRun, long: CheckedRun | None = None) -> Finding:
    """`forced` had its weights damaged, `calm` is its twin without, `long` the run of G2-4 if there is one."""
    alarms = {name: _alarms(run) for name, run in _calm_runs(calm, long).items()}
    numbers = _numbers(forced) | {"false_alarms": alarms}
    complaint = _complaint(forced, numbers) or _complaint_of_calm(calm, alarms) or _complaint_of_twins(forced, calm)
    evidence = _story(forced, calm, long)
    return failed(complaint, *evidence, numbers=numbers) if complaint else passed("", *evidence, numbers=numbers)


def _complaint(forced: CheckedRun, numbers: Mapping[str, Any]) -> str:
    if forced.config.debug.inject is None:
        return "no fault was injected"
    if forced.trouble:
        return f"the run with the spike: {forced.trouble}"
    spikes = forced.of_kind("spike")
    if not spikes:
        return "the forced spike was not noticed"
    if spikes[0]["step"] < _fault_step(forced) - 1:
        return f"a false alarm at step {spikes[0]['step']}, before the fault"
    if not forced.of_kind("rollback"):
        return "the forced spike was noticed and not rolled back"
    before, after = numbers["loss_before"], numbers["loss_after"]
    if before is None or after is None:
        return "the loss before or after the spike was not measured"
    return "" if after < before else f"not recovered: loss {after:.4f} after the spike, {before:.4f} before"


def _complaint_of_calm(calm: CheckedRun, alarms: Mapping[str, int]) -> str:
    if calm.trouble:
        return f"the calm run: {calm.trouble}"
    if calm.config.debug.inject is not None:
        return f"the calm run was not calm: debug.inject={calm.config.debug.inject}"
    return "; ".join(f"false alarms in the {name} run: {count}" for name, count in alarms.items() if count)


def _complaint_of_twins(forced: CheckedRun, calm: CheckedRun) -> str:
    hashes = [run.summary.config_hash if run.summary else None for run in (forced, calm)]
    return "" if hashes[0] == hashes[1] else "the calm run had other settings than the one with the spike"


def _calm_runs(calm: CheckedRun, long: CheckedRun | None) -> dict[str, CheckedRun]:
    """A long run that was itself disturbed on purpose says nothing about false alarms."""
    undisturbed = long is not None and long.config.debug.inject is None
    return {"calm": calm} | ({"long": long} if long is not None and undisturbed else {})


def _alarms(run: CheckedRun) -> int:
    """Spikes and rollbacks; a spike that was rolled back counts once."""
    return max(len(run.of_kind("spike")), len(run.of_kind("rollback")))


def _numbers(forced: CheckedRun) -> dict[str, Any]:
    """The best validation loss before the fault, and the last one of the run."""
    rollback = next(iter(forced.of_kind("rollback")), {})
    measured = [row for row in forced.rows if row.get(LOSS) is not None]
    before = [row[LOSS] for row in measured if row["segment"] == 0 and row["step"] < _fault_step(forced)]
    after = [row[LOSS] for row in measured if row["segment"] > 0]
    return {
        "fault": forced.config.debug.inject,
        "trigger": rollback.get("trigger"),
        "noticed_at_step": rollback.get("from_step"),
        "restored_step": rollback.get("step"),
        "rollbacks": len(forced.of_kind("rollback")),
        "loss_before": min(before, default=None),
        "loss_after": after[-1] if after else None,
    }


def _fault_step(forced: CheckedRun) -> int:
    """KIND@STEP[:SIZE][:always] -> STEP."""
    return int((forced.config.debug.inject or "@0").partition("@")[2].partition(":")[0])


def _story(forced: CheckedRun, calm: CheckedRun, long: CheckedRun | None) -> tuple[str, ...]:
    events = [*forced.of_kind("spike"), *forced.of_kind("rollback")]
    lines = [
        f"{event['kind']}, step {event['step']}: {event.get('message') or event.get('change')}" for event in events
    ]
    quiet = [
        f"{name} run: {run.summary.step if run.summary else 0} steps, {_alarms(run)} alarms"
        for name, run in _calm_runs(calm, long).items()
    ]
    return (*lines, *quiet)
