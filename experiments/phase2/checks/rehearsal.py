"""G2-6: a forced spike is rolled back and overcome; the same run without it, and the long run, never are.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.phase2.checks.arguments import override_group
from experiments.phase2.checks.finding import Finding, failed, passed
from experiments.phase2.checks.record import RunRecord

FAULT_STEP = 205  # when the spread of the first descent no longer widens the limit of a spike
FAULT = f"debug.inject=weights@{FAULT_STEP}"
# One layer of width 32: seconds. Watch, rollback and optimiser are those of the configuration that is on trial.
SMALL = (
    "model.width=32",
    "model.layers=1",
    "model.heads=2",
    "model.feedforward=64",
    "model.memory.hidden=16",
    "model.persistent_keys=8",
    "model.window=8",
    "chunk_size.shard=32",
    "chunk_size.global_size=32",
    "chunk_size.local=[8]",
    "data=stdlib",
    "train.sequence=64",
    "train.batch_size=8",
    "train.steps=260",
    "train.validation_every=20",
    "telemetry.every=20",
    "checkpoint.every=40",
    "niah=off",
    "logger=none",
)
HEEDED = ("device", "rollback", "seed")  # groups of the user's overrides that the rehearsal is run with
LOSS = "validation/loss"


def rehearsal_overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    return (*SMALL, *(text for text in overrides if override_group(text) in HEEDED))


def judge_rollback(forced: RunRecord, calm: RunRecord, long: RunRecord | None = None) -> Finding:
    """`forced` had its weights damaged, `calm` is its twin without, `long` the run of G2-4 if there is one."""
    alarms = {name: _alarms(run) for name, run in _calm_runs(calm, long).items()}
    numbers = _numbers(forced) | {"false_alarms": alarms}
    complaint = _complaint(forced, numbers) or _complaint_of_calm(calm, alarms) or _complaint_of_twins(forced, calm)
    evidence = _story(forced, calm, long)
    return failed(complaint, *evidence, numbers=numbers) if complaint else passed("", *evidence, numbers=numbers)


def _complaint(forced: RunRecord, numbers: Mapping[str, Any]) -> str:
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


def _complaint_of_calm(calm: RunRecord, alarms: Mapping[str, int]) -> str:
    if calm.trouble:
        return f"the calm run: {calm.trouble}"
    if calm.config.debug.inject is not None:
        return f"the calm run was not calm: debug.inject={calm.config.debug.inject}"
    return "; ".join(f"false alarms in the {name} run: {count}" for name, count in alarms.items() if count)


def _complaint_of_twins(forced: RunRecord, calm: RunRecord) -> str:
    hashes = [run.summary.config_hash if run.summary else None for run in (forced, calm)]
    return "" if hashes[0] == hashes[1] else "the calm run had other settings than the one with the spike"


def _calm_runs(calm: RunRecord, long: RunRecord | None) -> dict[str, RunRecord]:
    """A long run that was itself disturbed on purpose says nothing about false alarms."""
    undisturbed = long is not None and long.config.debug.inject is None
    return {"calm": calm} | ({"long": long} if long is not None and undisturbed else {})


def _alarms(run: RunRecord) -> int:
    """Spikes and rollbacks that were told; a spike that was rolled back counts once."""
    return max(len(run.of_kind("spike")), len(run.of_kind("rollback")))


def _numbers(forced: RunRecord) -> dict[str, Any]:
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


def _fault_step(forced: RunRecord) -> int:
    """KIND@STEP[:SIZE][:always] -> STEP."""
    return int((forced.config.debug.inject or "@0").partition("@")[2].partition(":")[0])


def _story(forced: RunRecord, calm: RunRecord, long: RunRecord | None) -> tuple[str, ...]:
    events = [*forced.of_kind("spike"), *forced.of_kind("rollback")]
    told = [f"{event['kind']}, step {event['step']}: {event.get('message') or event.get('change')}" for event in events]
    quiet = [
        f"{name} run: {run.summary.step if run.summary else 0} steps, {_alarms(run)} alarms"
        for name, run in _calm_runs(calm, long).items()
    ]
    return (*told, *quiet)
