"""The evidence of the chunk-size decision as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.phase2 import chunk_learning, investigation
from experiments.phase2.chunk_learning import LearningRun
from experiments.phase2.chunk_runs import BASELINE, WARM_UP_STEPS, ChunkRun, describe, measured_speeds
from experiments.phase2.chunk_sizes import investigated
from experiments.phase2.decision import EvidenceTable


def tables(evidence: Sequence[Any]) -> list[EvidenceTable]:
    runs = [one for one in evidence if isinstance(one, ChunkRun)]
    here = [speed for speed in measured_speeds(runs) if speed.context == runs[0].configured]
    baseline, found = here[0], investigated(evidence)
    learning = [one for one in evidence if isinstance(one, LearningRun)]
    return [
        _throughput(runs),
        *([investigation.table(here[1:], found, baseline.tokens_per_second)] if found else []),
        chunk_learning.table(learning, here[1:]),
    ]


def _throughput(evidence: Sequence[ChunkRun]) -> EvidenceTable:
    speeds = {(speed.context, speed.candidate): speed for speed in measured_speeds(evidence)}
    rows = []
    for (context, name), runs in _grouped(evidence).items():
        timed = sum(max(len(run.speeds) - WARM_UP_STEPS, 0) for run in runs)
        shape = [f"{context:,}", str(runs[0].batch_size), describe(name), str(timed)]
        speed = speeds.get((context, name))
        if speed is None:
            rows.append(
                [*shape, "-", "-", "-", "-", "no baseline" if all(run.fits for run in runs) else "does not fit"]
            )
            continue
        low, high = min(speed.rounds), max(speed.rounds)
        ratios = f"{min(speed.ratios):.2f}x to {max(speed.ratios):.2f}x"
        numbers = [f"{speed.tokens_per_second:,.0f}", f"{low:,.0f} to {high:,.0f}", f"{speed.ratio:.2f}x", ratios]
        rows.append([*shape, *numbers, _memory(runs)])
    head = ("context", "batch", "chunks", "timed steps", "tokens/s", "rounds", "x baseline", "rounds", "peak memory")
    note = (
        f"tokens/s of a round: median over its steps, without the first {WARM_UP_STEPS} of a run; x baseline: times the"
        " baseline of the same round. Shown is the median over the rounds, then the lowest and the highest. Peak memory"
        " is that of the process on the CPU, of the allocator on CUDA."
    )
    return EvidenceTable("Throughput", head, rows, note)


def _grouped(evidence: Sequence[ChunkRun]) -> dict[tuple[int, str], list[ChunkRun]]:
    """Runs by context and candidate, shorter contexts and the baseline first."""
    keys = {(run.context, run.candidate) for run in evidence}
    order = sorted(keys, key=lambda key: (key[0], key[1] != BASELINE, key[1]))
    return {key: [run for run in evidence if (run.context, run.candidate) == key] for key in order}


def _memory(runs: Sequence[ChunkRun]) -> str:
    known = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return f"{max(known) / 2**30:.2f} GiB" if len(known) == len(runs) else "not measured"
