"""The timed runs of the sweep over chunk sizes, and the speeds that they show. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from atlas.config import require
from experiments.phase2.recorded import Count, Positive, PositiveCount
from experiments.phase2.sweeps import (
    RecordedJob,
    RecordedSweep,
    require_rounds,
    require_same_settings,
    require_sound,
)

SETS = {"Set A": (8, 16, 32, 64), "Set B": (16, 32, 64, 128), "Set C": (8, 32, 64)}
BASELINE = "baseline"
WARM_UP_STEPS = 3  # of a run, not timed: allocator, caches, compiled kernels
CONTEXT = ("train.sequence", "train.batch_size", "train.steps")
# Settings in which the baseline differs from the sets.
STRUCTURE = ("chunk_size", "model.memory.use_global", "model.memory.qk_projection.range")
# How torch, CUDA and the operating system report that memory did not suffice.
EXHAUSTED = ("out of memory", "outofmemoryerror", "memoryerror", "allocate memory")


def braces(sizes: Sequence[int]) -> str:
    return f"{{{','.join(map(str, sizes))}}}"


@dataclass(frozen=True)
class ChunkRun:
    """One job. `speeds` are tokens/s of its steps in their order."""

    job: Count
    round: Count
    candidate: str  # a name of SETS, "baseline", or chunk sizes such as {8,16}
    context: PositiveCount  # tokens of a sequence
    configured: PositiveCount  # tokens; the context that the decision is made at
    batch_size: PositiveCount
    fits: bool  # in memory
    peak_memory_bytes: PositiveCount | None
    speeds: Sequence[Positive]


@dataclass(frozen=True)
class CandidateSpeed:
    """A candidate at one context: tokens/s, and how many times the baseline's.

    A round's tokens/s is the median over its timed steps. Its ratio is that to the baseline of the same round, because
    a machine that slows down slows both. Of the candidate: the median over the rounds.
    """

    candidate: str
    context: int
    tokens_per_second: float
    rounds: Sequence[float]
    ratio: float
    ratios: Sequence[float]


def gather(sweep: RecordedSweep) -> list[ChunkRun]:
    """Raises `ConfigError` for runs that are unfinished, of different machines or settings, or not interleaved."""
    jobs = sweep.jobs
    require_sound(jobs, excused={job.job for job in jobs if _exhausted(job)})
    enabled = all(job.settings["model.memory.enabled"] for job in jobs)
    require(enabled, "model.memory.enabled", enabled, "true: without a memory there are no chunks")
    require_same_settings(jobs, (*CONTEXT, *STRUCTURE))
    require_same_settings([job for job in jobs if candidate_of(job) != BASELINE], (*CONTEXT, "chunk_size.local"))
    for context in sorted({job.settings["train.sequence"] for job in jobs}):
        here = [job for job in jobs if job.settings["train.sequence"] == context]
        require_same_settings(here, STRUCTURE)  # one batch size and one number of steps
        require_rounds(here, candidate_of)
    return [_chunk_run(job) for job in jobs]


def candidate_of(job: RecordedJob) -> str:
    settings, local = job.settings, tuple(job.settings["chunk_size.local"])
    sequential = settings["chunk_size.shard"] == settings["train.sequence"]
    if local == (8,) and sequential and not settings["model.memory.use_global"]:
        return BASELINE
    return next((name for name, sizes in SETS.items() if local == sizes), braces(local))


def _exhausted(job: RecordedJob) -> bool:
    reason = job.summary["reason"].lower()
    return job.summary["status"] == "failed" and any(sign in reason for sign in EXHAUSTED)


def _chunk_run(job: RecordedJob) -> ChunkRun:
    settings, summary, fits = job.settings, job.summary, job.completed
    return ChunkRun(
        job=job.job,
        round=job.round,
        candidate=candidate_of(job),
        context=settings["train.sequence"],
        configured=settings["model.native.sequence"],
        batch_size=settings["train.batch_size"],
        fits=fits,
        peak_memory_bytes=summary["peak_memory_bytes"] if fits else None,
        speeds=_step_speeds(job) if fits else [],
    )


def _step_speeds(job: RecordedJob) -> list[float]:
    """tokens/s of every step. A step's row may be written again with more values; its first reading counts."""
    found: dict[int, float] = {}
    for row in job.rows:
        if row["tokens_per_second"] is not None:
            found.setdefault(row["step"], row["tokens_per_second"])
    steps = job.summary["step"]
    allowed = f"telemetry.every=1: {len(found)} of {steps} steps were timed"
    require(len(found) == steps, f"job {job.job} telemetry.every", job.settings["telemetry.every"], allowed)
    return [found[step] for step in sorted(found)]


def measured_speeds(evidence: Sequence[ChunkRun]) -> list[CandidateSpeed]:
    """Of every candidate at every context where it and the baseline fit in memory; shorter contexts first."""
    speeds = []
    for context in sorted({run.context for run in evidence}):
        by_name: dict[str, list[ChunkRun]] = {}
        for run in sorted((run for run in evidence if run.context == context), key=lambda run: run.round):
            by_name.setdefault(run.candidate, []).append(run)
        timed = {
            name: [median(run.speeds[WARM_UP_STEPS:]) for run in runs]
            for name, runs in by_name.items()
            if all(run.fits for run in runs)
        }
        for name, rounds in timed.items() if BASELINE in timed else ():
            ratios = [own / base for own, base in zip(rounds, timed[BASELINE], strict=True)]
            speeds.append(CandidateSpeed(name, context, median(rounds), rounds, median(ratios), ratios))
    return speeds


def describe(candidate: str) -> str:
    """A name of SETS with its sizes; any other candidate is named by its sizes already."""
    sizes = SETS.get(candidate)
    return f"{candidate}: {braces(sizes)}" if sizes else candidate
