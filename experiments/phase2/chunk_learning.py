"""What the sets of chunk sizes learn in equal time: loss and keyed recall. Shown, not decided by. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from atlas.config import RECALL, require
from atlas.config.keys import lies_in
from experiments.phase2.chunk_runs import SETS, CandidateSpeed, candidate_of, describe
from experiments.phase2.decision import EvidenceTable
from experiments.phase2.recorded import NotNegative, PositiveCount, Share
from experiments.phase2.sweeps import RecordedSweep, require_same_settings, require_sound

EXPERIMENT = "chunk_size_learning"
STEPS_MIN = 600  # of the slowest set at the time of comparison
SEEDS_MIN = 3
# With the timed runs, whose tokens/s tell when the time is up.
MUST_AGREE = ("model", "chunk_size.shard", "chunk_size.global_size", "train.sequence", "train.batch_size")


@dataclass(frozen=True)
class LearningRun:
    """One job. `measurements` are (step, validation loss in nats per byte, share of needles found by key)."""

    candidate: str
    seed: int
    tokens_per_step: PositiveCount
    measurements: Sequence[tuple[PositiveCount, NotNegative, Share]]


def gather(sweep: RecordedSweep, timed: RecordedSweep) -> list[LearningRun]:
    """Raises `ConfigError` for runs that are unfinished, too few or too short, or of another model than the timed."""
    jobs = sweep.jobs
    require_sound(jobs, timed=False)
    require_same_settings(jobs, ("chunk_size.local", "seed"))
    for job in jobs:
        require(candidate_of(job) in SETS, f"job {job.job} chunk_size.local", job.settings["chunk_size.local"], "a set")
        steps = job.summary["step"]
        require(steps >= STEPS_MIN, f"job {job.job} steps", steps, f">= {STEPS_MIN} in {sweep.folder}")
    for name in SETS:
        seeds = sorted(job.settings["seed"] for job in jobs if candidate_of(job) == name)
        allowed = f"at least {SEEDS_MIN} different ones of {name} in {sweep.folder}"
        require(len(set(seeds)) == len(seeds) >= SEEDS_MIN, "seed", seeds, allowed)
    here = [job for job in timed.jobs if job.settings["train.sequence"] == job.settings["model.native.sequence"]]
    twin = next(job for job in here if candidate_of(job) in SETS)
    for key, value in jobs[0].settings.items():
        if lies_in(key, MUST_AGREE):
            allowed = f"{twin.settings.get(key)}, as in {timed.folder}"
            require(value == twin.settings.get(key), f"{sweep.folder} {key}", value, allowed)
    runs = []
    for job in jobs:
        probes = (event for event in job.events if event["kind"] == "probe" and event["level"] == RECALL.name)
        recalls = {event["step"]: event["accuracy"] for event in probes if event["accuracy"] is not None}
        size, key = job.summary.get("bytes_per_token", 1.0), "validation/loss"  # of a token
        losses = {row["step"]: row[key] / size for row in job.rows if row.get(key) is not None}
        measurements = [(step, losses[step], recalls[step]) for step in sorted(recalls.keys() & losses.keys())]
        tokens = job.settings["train.sequence"] * job.settings["train.batch_size"]
        runs.append(LearningRun(candidate_of(job), job.settings["seed"], tokens, measurements))
    return runs


@dataclass(frozen=True)
class Learned:
    """A set at the time of comparison, over its seeds."""

    candidate: str
    step: float  # the earliest of the measurements
    ended: bool  # a run ended before the time was up
    losses: Sequence[float]
    recalls: Sequence[float]


def at_equal_time(runs: Sequence[LearningRun], speeds: Sequence[CandidateSpeed]) -> tuple[float, dict[str, Learned]]:
    """The seconds in which the slowest set takes `STEPS_MIN` steps, and what each set that was measured reaches then.

    `speeds` of the sets at the configured context. Raises `ConfigError` for a run that stands there twice.
    """
    for (name, seed), count in Counter((run.candidate, run.seed) for run in runs).items():
        require(count == 1, f"runs of {name} with seed {seed}", count, "1")
    if not runs:
        return 0.0, {}
    for run in runs:
        allowed = f"{runs[0].tokens_per_step}, as in the first run"
        require(run.tokens_per_step == runs[0].tokens_per_step, "tokens_per_step", run.tokens_per_step, allowed)
    found, tokens = {}, runs[0].tokens_per_step
    seconds = max((STEPS_MIN * tokens / one.tokens_per_second for one in speeds), default=0.0)
    for one in speeds:
        own = [run for run in runs if run.candidate == one.candidate]
        steps = round(seconds * one.tokens_per_second / tokens)
        in_time = [[taken for taken in run.measurements if taken[0] <= steps] for run in own]
        if own and all(in_time):
            step, losses, recalls = zip(*(measurements[-1] for measurements in in_time), strict=True)
            ended = any(list(run.measurements) == taken for run, taken in zip(own, in_time, strict=True))
            found[one.candidate] = Learned(one.candidate, min(step), ended, losses, recalls)
    return seconds, found


def sentence(runs: Sequence[LearningRun], speeds: Sequence[CandidateSpeed]) -> str:
    """What the sets reach in equal time, in one sentence."""
    seconds, found = at_equal_time(runs, speeds)
    if not found:
        return "What the sets learn in equal time is not measured."
    each = [f"{one.candidate} {fmean(one.losses):.3f} and {fmean(one.recalls):.1%}" for one in found.values()]
    after = f"after {seconds:,.0f} seconds of training"
    return f"Validation loss (nats per byte) and keyed recall {after}: {'; '.join(each)}."


def table(runs: Sequence[LearningRun], speeds: Sequence[CandidateSpeed]) -> EvidenceTable:
    """`at_equal_time` as a table."""
    seconds, found = at_equal_time(runs, speeds)
    rows = []
    for speed in speeds:
        one = found.get(speed.candidate)
        if one is None:
            rows.append([describe(speed.candidate), *["not measured"] * 4])
            continue
        loss = f"{fmean(one.losses):.3f} ({min(one.losses):.3f} to {max(one.losses):.3f})"
        recall = f"{fmean(one.recalls):.1%} ({min(one.recalls):.1%} to {max(one.recalls):.1%})"
        step = f"{one.step:,.0f}{' (the end)' * one.ended}"
        rows.append([describe(one.candidate), str(len(one.losses)), step, loss, recall])
    when = f"after {seconds:,.0f} seconds of training" if runs else "at equal time"
    head = ("chunks", "seeds", "steps", "validation loss", "keyed recall")
    note = (
        f"At the last measurement within the time in which the slowest set takes {STEPS_MIN} steps, by the tokens/s"
        " above; a run that ends before is read at its end, and says so. Means over the seeds, then the lowest and the"
        " highest: nats per byte, and the share of needles found by their key. These columns do not decide."
        + ("" if runs else f" Not measured: `python -m atlas.train experiment={EXPERIMENT}` does.")
    )
    return EvidenceTable(f"Loss and recall {when}", head, rows, note)
