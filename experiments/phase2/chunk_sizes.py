"""Which set of chunk sizes? The rule of P2-T1 (protocol 4.1), and how a sweep becomes its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from atlas.config import RECALL, require
from experiments.phase2.decision import DecisionOutcome, ProtocolDecision
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
RATIO_MIN = 5.0
STEPS_MIN = 100  # of each candidate at the configured context, all rounds together
CONTEXT = ("train.sequence", "train.batch_size", "train.steps")
# Settings in which the baseline differs from the sets.
STRUCTURE = ("chunk_size", "model.memory.use_global", "model.memory.qk_projection.range")
# How torch, CUDA and the operating system report that memory did not suffice.
EXHAUSTED = ("out of memory", "outofmemoryerror", "memoryerror", "allocate memory")


def braces(sizes: Sequence[int]) -> str:
    return f"{{{','.join(map(str, sizes))}}}"


RULE = (
    f"Candidates: {', '.join(f'{name} {braces(sizes)}' for name, sizes in SETS.items())}. Baseline: one memory with"
    " chunk 8 run in sequence over the whole context, without shards, global memory or Q-K projection."
    f" At least {STEPS_MIN} steps of each at the configured context, with equal batches and settings, in interleaved"
    " rounds on one machine. Every chunk size of a set must fit in memory. A round's throughput is the median"
    f" over its steps without the first {WARM_UP_STEPS}, compared with the baseline of the same round; the median over"
    " the rounds counts. Of the sets that fit, the one with the highest throughput is chosen if it reaches"
    f" {RATIO_MIN:g} times the baseline's; if it does not, the decision is STOP. Loss and recall are shown and do not"
    " decide."
)


@dataclass(frozen=True)
class ChunkRun:
    """One job. `speeds` are tokens/s of its steps in their order."""

    job: int
    round: int
    candidate: str  # a name of SETS, "baseline", or chunk sizes such as {8,16}
    context: int  # tokens of a sequence
    configured: int  # tokens; the context that the decision is made at
    batch_size: int
    fits: bool  # in memory
    peak_memory_bytes: int | None
    loss: float | None
    validation_loss: float | None
    recall: float | None
    recall_control: float | None  # with the memory off
    recall_chance: float | None
    speeds: Sequence[float]


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
    require_same_settings([job for job in jobs if _candidate(job) != BASELINE], (*CONTEXT, "chunk_size.local"))
    for context in sorted({job.settings["train.sequence"] for job in jobs}):
        here = [job for job in jobs if job.settings["train.sequence"] == context]
        require_same_settings(here, STRUCTURE)  # one batch size and one number of steps
        require_rounds(here, _candidate)
    return [_chunk_run(job) for job in jobs]


def _candidate(job: RecordedJob) -> str:
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
    recall = summary["niah"].get(RECALL.name, {})
    return ChunkRun(
        job=job.job,
        round=job.round,
        candidate=_candidate(job),
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


def decide(evidence: Sequence[ChunkRun]) -> ProtocolDecision:
    """Raises `ConfigError` where the runs are too few to decide."""
    configured = evidence[0].configured
    _require_candidates(evidence, configured)
    _require_steps(evidence, configured)
    sets = [speed for speed in measured_speeds(evidence) if speed.candidate != BASELINE]
    misfits = sorted({run.candidate for run in evidence if run.context == configured and not run.fits})
    misfit = f"Does not fit in memory at {configured} tokens: {', '.join(misfits)}." if misfits else ""
    here = [speed for speed in sets if speed.context == configured]
    if not here:
        return ProtocolDecision(DecisionOutcome.stop, "no set fits in memory", misfit, False)
    fastest = max(here, key=lambda speed: speed.ratio)
    spread = f"{min(fastest.ratios):.2f}x to {max(fastest.ratios):.2f}x over {len(fastest.ratios)} rounds"
    comparison = (
        f"{describe(fastest.candidate)} is the fastest set that fits: {fastest.tokens_per_second:,.0f} tokens/s at"
        f" {fastest.context} tokens, {fastest.ratio:.2f}x the baseline ({spread}); {RATIO_MIN:g}x is wanted."
    )
    reason = " ".join(filter(None, [comparison, misfit, _contexts(sets)]))
    if fastest.ratio >= RATIO_MIN:
        return ProtocolDecision(DecisionOutcome.decided, describe(fastest.candidate), reason, True)
    headline = f"best {fastest.candidate} {fastest.ratio:.2f}x < {RATIO_MIN:g}x at {configured} tokens"
    return ProtocolDecision(DecisionOutcome.stop, headline, reason, False)


def _require_candidates(evidence: Sequence[ChunkRun], configured: int) -> None:
    found = sorted({run.candidate for run in evidence if run.context == configured})
    missing = [name for name in (BASELINE, *SETS) if name not in found]
    allowed = f"{', '.join((BASELINE, *SETS))} at {configured} tokens; {', '.join(missing)} is missing"
    require(not missing, "candidates", ", ".join(found) or "none", allowed)
    for run in evidence:
        holds = run.fits or run.candidate != BASELINE or run.context != configured
        require(holds, f"job {run.job} memory", "exhausted", "enough for the baseline: without it there is no ratio")


def _require_steps(evidence: Sequence[ChunkRun], configured: int) -> None:
    for run in evidence:
        timed = len(run.speeds) > WARM_UP_STEPS or not run.fits
        require(timed, f"job {run.job} steps", len(run.speeds), f"> {WARM_UP_STEPS}: the first are not timed")
    here = [run for run in evidence if run.context == configured]
    for name in sorted({run.candidate for run in here}):
        runs = [run for run in here if run.candidate == name]
        steps = sum(len(run.speeds) for run in runs)
        enough = steps >= STEPS_MIN or not all(run.fits for run in runs)
        require(enough, f"steps of {name}", steps, f">= {STEPS_MIN} at {configured} tokens, all rounds together")


def _contexts(sets: Sequence[CandidateSpeed]) -> str:
    """At which contexts the ratio is reached, or the highest ratio found."""
    best = {speed.context: speed for speed in sorted(sets, key=lambda speed: speed.ratio)}  # the highest comes last
    reached = [speed for _, speed in sorted(best.items()) if speed.ratio >= RATIO_MIN]
    if reached:
        listed = ", ".join(f"{speed.context} tokens ({speed.candidate}, {speed.ratio:.2f}x)" for speed in reached)
        return f"{RATIO_MIN:g}x is reached at {listed}."
    nearest = max(best.values(), key=lambda speed: speed.ratio)
    measured = ", ".join(map(str, sorted(best)))
    return (
        f"{RATIO_MIN:g}x is reached at none of the contexts measured ({measured} tokens); the highest ratio is"
        f" {nearest.ratio:.2f}x ({nearest.candidate} at {nearest.context} tokens)."
    )


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
