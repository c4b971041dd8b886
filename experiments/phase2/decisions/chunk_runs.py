"""Runs of the chunk-size sweep as evidence, and the throughput that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SETS = {"Set A": (8, 16, 32, 64), "Set B": (16, 32, 64, 128), "Set C": (8, 32, 64)}
BASELINE = "baseline"
WARM_UP_STEPS = 3  # of a run, not timed: allocator, caches, compiled kernels


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
class Speed:
    """A candidate at one context: tokens/s, and how many times the baseline's.

    A round's tokens/s is the median over its timed steps, its ratio that to the baseline of the same round: a machine
    that slows down slows both. Of the candidate: the median over the rounds.
    """

    candidate: str
    context: int
    tokens_per_second: float
    rounds: Sequence[float]
    ratio: float
    ratios: Sequence[float]


def measured_speeds(evidence: Sequence[ChunkRun]) -> list[Speed]:
    """Of every candidate at every context where it and the baseline fit in memory; shorter contexts first."""
    contexts = sorted({run.context for run in evidence})
    return [speed for context in contexts for speed in _speeds_at(evidence, context)]


def _speeds_at(evidence: Sequence[ChunkRun], context: int) -> list[Speed]:
    by_name: dict[str, list[ChunkRun]] = {}
    for run in sorted((run for run in evidence if run.context == context), key=lambda run: run.round):
        by_name.setdefault(run.candidate, []).append(run)
    timed = {
        name: [median(run.speeds[WARM_UP_STEPS:]) for run in runs]
        for name, runs in by_name.items()
        if all(run.fits for run in runs)
    }
    if BASELINE not in timed:
        return []
    speeds = []
    for name, rounds in timed.items():
        ratios = [own / base for own, base in zip(rounds, timed[BASELINE], strict=True)]
        speeds.append(Speed(name, context, median(rounds), rounds, median(ratios), ratios))
    return speeds


def describe(candidate: str) -> str:
    """A name of SETS with its sizes; any other candidate's name says them already."""
    sizes = SETS.get(candidate)
    return f"{candidate}: {braces(sizes)}" if sizes else candidate


def braces(sizes: Sequence[int]) -> str:
    return f"{{{','.join(map(str, sizes))}}}"
