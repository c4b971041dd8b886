"""The evidence of the chunk-size decision as tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from experiments.phase2.chunk_sizes import BASELINE, WARM_UP_STEPS, ChunkRun, describe, measured_speeds
from experiments.phase2.decision import EvidenceTable


def tables(evidence: Sequence[ChunkRun]) -> list[EvidenceTable]:
    return [_throughput(evidence), _quality(evidence)]


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


def _quality(evidence: Sequence[ChunkRun]) -> EvidenceTable:
    configured = evidence[0].configured
    rows = []
    for (context, name), runs in _grouped(evidence).items():
        if context != configured:
            continue
        losses = [_mean([run.loss for run in runs], ".4f"), _mean([run.validation_loss for run in runs], ".4f")]
        shares = [(run.recall, run.recall_control, run.recall_chance) for run in runs]
        recall = [_mean(column, ".1%") for column in zip(*shares, strict=True)]
        steps = str(max(len(run.speeds) for run in runs))
        rows.append([describe(name), steps, *losses, *recall])
    head = ("chunks", "after steps", "loss", "validation loss", "recall", "memory off", "chance")
    note = (
        "Means over the rounds: losses in nats per byte, recall as the share of needles found. A run this short has"
        " barely begun to learn, so recall is still near chance. These columns do not decide."
    )
    return EvidenceTable(f"Loss and recall at {configured:,} tokens", head, rows, note)


def _grouped(evidence: Sequence[ChunkRun]) -> dict[tuple[int, str], list[ChunkRun]]:
    """Runs by context and candidate, shorter contexts and the baseline first."""
    keys = {(run.context, run.candidate) for run in evidence}
    order = sorted(keys, key=lambda key: (key[0], key[1] != BASELINE, key[1]))
    return {key: [run for run in evidence if (run.context, run.candidate) == key] for key in order}


def _memory(runs: Sequence[ChunkRun]) -> str:
    known = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return f"{max(known) / 2**30:.2f} GiB" if len(known) == len(runs) else "not measured"


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):{form}}" if known and len(known) == len(values) else "-"
