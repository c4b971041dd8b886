"""Jobs of a sweep -> evidence on the probe frequency. Refuses runs that cannot be compared."""

from __future__ import annotations

from experiments.phase2.decisions.probe_runs import ProbeRun
from experiments.phase2.decisions.recorded import RecordedRun, Sweep
from experiments.phase2.decisions.soundness import require_rounds, require_same_settings, require_sound


def gather(sweep: Sweep) -> list[ProbeRun]:
    """Raises `ConfigError` for runs that are unfinished, of different machines or settings, or not interleaved."""
    runs = sweep.runs
    require_sound(runs)
    require_same_settings(runs, ("niah.every", "niah.enabled"))
    require_rounds(runs, _frequency)
    return [_evidence(run) for run in runs]


def _frequency(run: RecordedRun) -> int | None:
    return int(run.settings["niah.every"]) if run.settings["niah.enabled"] else None


def _evidence(run: RecordedRun) -> ProbeRun:
    seconds = run.summary["seconds"]
    return ProbeRun(
        job=run.job,
        round=run.round,
        every=_frequency(run),
        steps=run.summary["step"],
        probes=len({event["step"] for event in run.events if event["kind"] == "probe"}),
        probe_seconds=seconds.get("probe", 0.0),
        train_seconds=seconds["train"],
        wall_seconds=round(run.times("end")[-1] - run.times("start")[0], 3),
    )
