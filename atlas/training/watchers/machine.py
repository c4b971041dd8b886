"""Watchers of the machine: time, and the files of the run."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean, median

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import FIRST_STEPS, LOOKS, STEPS, Record

SLOWER = 4.0  # times: a busy machine doubles the time of a step
LONGEST = 20.0  # times: one step that waited for hours says nothing about the others
SHORTEST = 0.005  # seconds; the time of a shorter step is that of the interpreter, and any process disturbs it
GROWN, GROWN_SHARE = 50e6, 0.05  # bytes, and share of the size at the first of these looks
JUMP = 60.0  # seconds: a clock that is set by the network moves by less


def slowdown(record: Record) -> Finding | None:
    """The mean of the newest steps against the median of the first ones of this start."""
    if record.steps_here < FIRST_STEPS + 2 * STEPS:
        return None
    before = median(record.first_seconds)
    now = fmean(min(taken, LONGEST * before) for taken in record.seconds)
    if now < SLOWER * before or now < SHORTEST:
        return None
    return Finding(
        "slowdown",
        record.step,
        now / before,
        f"a step takes {now:.3g} s, {now / before:.1f} times as long as at the start ({before:.3g} s)",
        "the run ends later than planned, and its timings are no evidence",
        "to look for other processes, heat or swapping; resume=RUN starts anew",
        {"seconds": now, "seconds_at_start": before},
    )


def memory_grows(record: Record) -> Finding | None:
    """Memory that each of the last looks finds larger than the one before, by a median that counts.

    One large rise, as of a first test of the model, and bytes between the others are no leak.
    """
    for place, looks in record.memory.items():
        sizes = [size for _, size in looks]
        grown = sizes[-1] - sizes[0]
        rises = [later - earlier for earlier, later in pairwise(sizes)]
        if len(sizes) < LOOKS or min(rises) <= 0:
            continue
        if min(grown, median(rises) * len(rises)) < max(GROWN, GROWN_SHARE * sizes[0]):
            continue
        passed = looks[-1][0] - looks[0][0]
        return Finding(
            "memory_grows",
            record.step,
            grown / passed,
            f"the memory of {place} has grown by {grown / passed / 1e6:.2g} MB a step in the last {passed} steps, to "
            f"{sizes[-1] / 1e9:.3g} GB",
            "something keeps what it no longer needs, and the run ends when the memory is full",
            "a look at what your own data source, optimiser or metrics keep of every step",
        )
    return None


def clock(record: Record) -> Finding | None:
    jump = record.clock_jump
    if abs(jump) < JUMP:
        return None
    return Finding(
        "clock",
        record.step,
        jump,
        f"the wall clock jumped by {jump:+.0f} s between two steps",
        "times in metrics.jsonl and events.jsonl are not in order; the machine may have slept",
        "to set the clock by the network; training does not depend on it",
    )


def files(record: Record) -> Finding | None:
    if record.missing:
        seen = f"{', '.join(record.missing)} was removed while the run went on"
        why = "what was in it is lost, where the run cannot write it again"
        hint = "to leave the run folder alone until the run has ended"
    elif record.edited:
        seen = f"{', '.join(record.edited)} was edited while the run went on"
        why = "the run keeps the settings that it began with, and whoever reads the file later gets others"
        hint = "to put it back; resume=RUN KEY=VALUE changes settings"
    else:
        return None
    return Finding("files", record.step, len(record.missing) + len(record.edited), seen, why, hint)
