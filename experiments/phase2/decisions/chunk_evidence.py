"""Jobs of a sweep -> evidence on chunk sizes. Refuses runs that cannot be compared."""

from __future__ import annotations

from atlas.config import RECALL, require
from experiments.phase2.decisions.chunk_runs import BASELINE, SETS, ChunkRun, braces
from experiments.phase2.decisions.recorded import RecordedRun, Sweep
from experiments.phase2.decisions.soundness import require_rounds, require_same_settings, require_sound

CONTEXT = ("train.sequence", "train.batch_size", "train.steps")
# What the baseline does otherwise than the sets.
STRUCTURE = ("chunk_size", "model.memory.use_global", "model.memory.qk_projection.range")
# How torch, CUDA and the operating system say that memory did not suffice.
EXHAUSTED = ("out of memory", "outofmemoryerror", "memoryerror", "allocate memory")


def gather(sweep: Sweep) -> list[ChunkRun]:
    """Raises `ConfigError` for runs that are unfinished, of different machines or settings, or not interleaved."""
    runs = sweep.runs
    require_sound(runs, excused={run.job for run in runs if _exhausted(run)})
    enabled = all(run.settings["model.memory.enabled"] for run in runs)
    require(enabled, "model.memory.enabled", enabled, "true: without a memory there are no chunks")
    require_same_settings(runs, (*CONTEXT, *STRUCTURE))
    sets = [run for run in runs if _candidate(run) != BASELINE]
    require_same_settings(sets, (*CONTEXT, "chunk_size.local"))
    for context in sorted({run.settings["train.sequence"] for run in runs}):
        here = [run for run in runs if run.settings["train.sequence"] == context]
        require_same_settings(here, STRUCTURE)  # one batch size and one number of steps
        require_rounds(here, _candidate)
    return [_evidence(run) for run in runs]


def _candidate(run: RecordedRun) -> str:
    settings, local = run.settings, tuple(run.settings["chunk_size.local"])
    sequential = settings["chunk_size.shard"] == settings["train.sequence"]
    if local == (8,) and sequential and not settings["model.memory.use_global"]:
        return BASELINE
    return next((name for name, sizes in SETS.items() if local == sizes), braces(local))


def _exhausted(run: RecordedRun) -> bool:
    reason = run.summary["reason"].lower()
    return run.summary["status"] == "failed" and any(sign in reason for sign in EXHAUSTED)


def _evidence(run: RecordedRun) -> ChunkRun:
    settings, summary, fits = run.settings, run.summary, run.completed
    recall = summary["niah"].get(RECALL.name, {})
    return ChunkRun(
        job=run.job,
        round=run.round,
        candidate=_candidate(run),
        context=settings["train.sequence"],
        configured=settings["model.native.sequence"],
        batch_size=settings["train.batch_size"],
        fits=fits,
        peak_memory_bytes=summary["peak_memory_bytes"] if fits else None,
        loss=summary["loss"],
        validation_loss=summary["validation_loss"],
        recall=recall.get("accuracy"),
        recall_control=recall.get("control"),
        recall_chance=recall.get("chance"),
        speeds=_speeds(run) if fits else [],
    )


def _speeds(run: RecordedRun) -> list[float]:
    """tokens/s of every step. A step's row may be written again with more values; its first reading counts."""
    found: dict[int, float] = {}
    for row in run.rows:
        if row["tokens_per_second"] is not None:
            found.setdefault(row["step"], row["tokens_per_second"])
    steps = run.summary["step"]
    allowed = f"telemetry.every=1: {len(found)} of {steps} steps were timed"
    require(len(found) == steps, f"job {run.job} telemetry.every", run.settings["telemetry.every"], allowed)
    return [found[step] for step in sorted(found)]
