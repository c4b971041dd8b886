"""Which set of chunk sizes? The rule of P2-T1 (protocol 4.1). Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atlas.config import require
from experiments.phase2 import chunk_learning, chunk_runs, investigation
from experiments.phase2.chunk_learning import LearningRun
from experiments.phase2.chunk_runs import (
    BASELINE,
    SETS,
    WARM_UP_STEPS,
    CandidateSpeed,
    ChunkRun,
    braces,
    describe,
    measured_speeds,
)
from experiments.phase2.decision import DecisionOutcome, ProtocolDecision
from experiments.phase2.defaults import default_config, default_option
from experiments.phase2.investigation import InvestigationMachine, SetInvestigation, failures
from experiments.phase2.sweeps import RecordedSweep, require_once_a_round

RATIO_MIN = 5.0
WHAT_FOR = (
    "A set gives a model one local memory for each of its chunk sizes: small chunks update a memory more often, large"
    " ones cost less time, and several memories cost more time than one."
)
STEPS_MIN = 100  # of each candidate at the configured context, all rounds together
RULE = (
    f"Candidates: {', '.join(f'{name} {braces(sizes)}' for name, sizes in SETS.items())}. Baseline: one memory with"
    " chunk 8 run in sequence over the whole context, without shards, global memory or Q-K projection."
    f" At least {STEPS_MIN} steps of each at the configured context, with equal batches and settings, in interleaved"
    " rounds on one machine. Every chunk size of a set must fit in memory. A round's throughput is the median"
    f" over its steps without the first {WARM_UP_STEPS}, compared with the baseline of the same round; the median over"
    " the rounds counts. Of the sets that fit, the one with the highest throughput is chosen if it reaches"
    f" {RATIO_MIN:g} times the baseline's. Two sets whose ratios to the baseline differ by no more than either spreads"
    " over the rounds are not distinguishable: then the one with fewer memories is chosen. Loss and recall are shown"
    f" and do not decide. {investigation.RULE}"
)


def gather(sweeps: Sequence[RecordedSweep]) -> list[ChunkRun | LearningRun]:
    """Of the timed sweep and, where there is one, of the sweep that shows what the sets learn. Raises `ConfigError`."""
    timed, *learning = sweeps
    runs = chunk_runs.gather(timed)
    return [*runs, *(run for sweep in learning for run in chunk_learning.gather(sweep, timed))]


def decide(evidence: Sequence[Any]) -> ProtocolDecision:
    """From `ChunkRun`s and, where no set reaches the ratio, a `SetInvestigation` of each set that fits.

    Raises `ConfigError` where the runs are too few to decide.
    """
    runs = [one for one in evidence if isinstance(one, ChunkRun)]
    require(len(runs) > 0, "runs", 0, "at least one")
    configured = runs[0].configured
    _require_equal(runs)
    _require_candidates(runs, configured)
    _require_steps(runs, configured)
    speeds = measured_speeds(runs)
    sets = [speed for speed in speeds if speed.candidate != BASELINE]
    misfits = sorted({run.candidate for run in runs if run.context == configured and not run.fits})
    misfit = f"Does not fit in memory at {configured} tokens: {', '.join(misfits)}." if misfits else ""
    here = [speed for speed in sets if speed.context == configured]
    if not here:
        advice = f"No set of chunk sizes can be used: none fits in memory at {configured} tokens. {_default()}"
        return ProtocolDecision(DecisionOutcome.stop, "no set fits in memory", misfit, advice, False)
    chosen, why = choose(here)
    spread = f"{min(chosen.ratios):.2f}x to {max(chosen.ratios):.2f}x over {len(chosen.ratios)} rounds"
    comparison = (
        f"{describe(chosen.candidate)} {why}: {chosen.tokens_per_second:,.0f} tokens/s at {configured} tokens,"
        f" {chosen.ratio:.2f}x the baseline, each the median of the rounds ({spread}); {RATIO_MIN:g}x is wanted."
    )
    reason = " ".join(filter(None, [comparison, misfit, _contexts(sets)]))
    option = f" (chunk_size={chosen.candidate.lower().replace(' ', '_')})" * (chosen.candidate in SETS)
    at = f"at {chosen.ratio:.2f}x the speed of one memory in sequence, the median of the rounds"
    learned = chunk_learning.sentence([one for one in evidence if isinstance(one, LearningRun)], here)
    use = (
        f"Of the sets of chunk sizes use {describe(chosen.candidate)}{option}: it {why}, {at}."
        f" {WHAT_FOR} {learned} {_default()}"
    )
    if chosen.ratio >= RATIO_MIN:
        return ProtocolDecision(DecisionOutcome.decided, describe(chosen.candidate), reason, use, True)
    found = investigated(evidence)
    (baseline,) = (
        speed.tokens_per_second for speed in speeds if (speed.candidate, speed.context) == (BASELINE, configured)
    )
    machine = next((one for one in evidence if isinstance(one, InvestigationMachine)), None)
    failed = failures(here, found, baseline, RATIO_MIN, machine)
    if failed:
        headline = f"best {chosen.candidate} {chosen.ratio:.2f}x < {RATIO_MIN:g}x at {configured} tokens; {failed[0]}"
        reason = f"{reason} Found: {'; '.join(failed)}."
        fastest = f"Of the sets {describe(chosen.candidate)} {why}, {at}."
        advice = f"No set of chunk sizes is locked: {failed[0]}. {_default()} {fastest} {learned}"
        return ProtocolDecision(DecisionOutcome.stop, headline, reason, advice, False)
    highest = max(found[speed.candidate].ceiling for speed in here) / baseline
    headline = f"{describe(chosen.candidate)}, {chosen.ratio:.2f}x of at most {highest:.2f}x"
    bound = f"{RATIO_MIN:g}x is out of reach on this device: matrix products alone would allow {highest:.2f}x at most"
    reason = f"{reason} Every set was investigated: shards are folded exactly, and all gain from it as they should."
    quiet = machine.sentence if machine else "Whether the machine was quiet meanwhile was not recorded."
    return ProtocolDecision(
        DecisionOutcome.out_of_reach, headline, f"{reason} {quiet} {bound}.", f"{use} {bound}.", True
    )


def _default() -> str:
    """The option of the configuration that a decision leaves as it is."""
    option, sizes = default_option("chunk_size"), " and ".join(map(str, default_config().chunk_size.local))
    return (
        f"The default stays chunk_size={option}, chunks of {sizes} tokens: the rule chooses among the sets, and whether"
        " a set learns more than the default or the baseline is not measured."
    )


def choose(sets: Sequence[CandidateSpeed]) -> tuple[CandidateSpeed, str]:
    """The set to use, and why it and no other."""
    pool = [speed for speed in sets if speed.ratio >= RATIO_MIN] or sets
    fastest = max(pool, key=lambda speed: speed.ratio)
    equals = [speed for speed in pool if not distinguishable(speed, fastest)]
    chosen = min(equals, key=lambda speed: (memories(speed.candidate), -speed.ratio))
    if len(equals) == 1:
        return chosen, "is the fastest set that fits"
    others = " and ".join(speed.candidate for speed in equals if speed is not chosen)
    fewest = all(memories(chosen.candidate) < memories(speed.candidate) for speed in equals if speed is not chosen)
    return chosen, (
        f"is not distinguishable by speed from {others} and has {'fewer memories' if fewest else 'no more memories'}"
    )


def distinguishable(one: CandidateSpeed, other: CandidateSpeed) -> bool:
    """Whether their ratios differ by more than either spreads over the rounds."""
    spread = max(max(speed.ratios) - min(speed.ratios) for speed in (one, other))
    return abs(one.ratio - other.ratio) > spread


def memories(candidate: str) -> int:
    """Local ones."""
    return describe(candidate).count(",") + 1


def investigated(evidence: Sequence[Any]) -> dict[str, SetInvestigation]:
    """Raises `ConfigError` for a set that was investigated twice."""
    found = [one for one in evidence if isinstance(one, SetInvestigation)]
    names = [one.candidate for one in found]
    require(len(set(names)) == len(names), "investigation", ", ".join(names), "once of each set")
    return dict(zip(names, found, strict=True))


def _require_equal(runs: Sequence[ChunkRun]) -> None:
    """Every candidate of a context runs once a round, with one batch size; all runs are of one model."""
    for context in dict.fromkeys(run.context for run in runs):
        here = [run for run in runs if run.context == context]
        require_once_a_round(here, lambda run: f"{run.candidate} at {run.context} tokens")
        for run in here:
            allowed = f"{here[0].batch_size} at {context} tokens, as in the first run"
            require(run.batch_size == here[0].batch_size, f"job {run.job} batch_size", run.batch_size, allowed)
    for run in runs:
        first = runs[0].configured
        require(run.configured == first, f"job {run.job} configured", run.configured, f"{first}, as in the first run")
        require(run.fits or not run.speeds, f"job {run.job} fits", run.fits, "true where there are speeds")


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
