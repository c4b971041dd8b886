"""Which set of chunk sizes? (P2-T1, protocol 4.1). The written rule as a pure function of recorded runs."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.config import require
from experiments.phase2.decisions.chunk_runs import (
    BASELINE,
    SETS,
    WARM_UP_STEPS,
    ChunkRun,
    Speed,
    braces,
    describe,
    measured_speeds,
)
from experiments.phase2.decisions.decision import Decision, Outcome

RATIO_MIN = 5.0
STEPS_MIN = 100  # of each candidate at the configured context, all rounds together
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


def decide(evidence: Sequence[ChunkRun]) -> Decision:
    """Raises `ConfigError` where the runs are too few to decide."""
    configured = evidence[0].configured
    _require_candidates(evidence, configured)
    _require_steps(evidence, configured)
    sets = [speed for speed in measured_speeds(evidence) if speed.candidate != BASELINE]
    misfits = sorted({run.candidate for run in evidence if run.context == configured and not run.fits})
    misfit = f"Does not fit in memory at {configured} tokens: {', '.join(misfits)}." if misfits else ""
    here = [speed for speed in sets if speed.context == configured]
    if not here:
        return Decision(Outcome.stop, "no set fits in memory", misfit, False)
    fastest = max(here, key=lambda speed: speed.ratio)
    reason = " ".join(filter(None, [_comparison(fastest), misfit, _contexts(sets)]))
    if fastest.ratio >= RATIO_MIN:
        return Decision(Outcome.decided, describe(fastest.candidate), reason, True)
    headline = f"best {fastest.candidate} {fastest.ratio:.2f}x < {RATIO_MIN:g}x at {configured} tokens"
    return Decision(Outcome.stop, headline, reason, False)


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
        steps = len(run.speeds)
        timed = steps > WARM_UP_STEPS or not run.fits
        require(timed, f"job {run.job} steps", steps, f"> {WARM_UP_STEPS}: the first are not timed")
    here = [run for run in evidence if run.context == configured]
    for name in sorted({run.candidate for run in here}):
        runs = [run for run in here if run.candidate == name]
        steps = sum(len(run.speeds) for run in runs)
        enough = steps >= STEPS_MIN or not all(run.fits for run in runs)
        require(enough, f"steps of {name}", steps, f">= {STEPS_MIN} at {configured} tokens, all rounds together")


def _comparison(fastest: Speed) -> str:
    spread = f"{min(fastest.ratios):.2f}x to {max(fastest.ratios):.2f}x over {len(fastest.ratios)} rounds"
    return (
        f"{describe(fastest.candidate)} is the fastest set that fits: {fastest.tokens_per_second:,.0f} tokens/s at"
        f" {fastest.context} tokens, {fastest.ratio:.2f}x the baseline ({spread}); {RATIO_MIN:g}x is wanted."
    )


def _contexts(sets: Sequence[Speed]) -> str:
    """At which contexts the ratio is reached, or how near it comes to it."""
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
