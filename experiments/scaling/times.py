"""How long the steps of one process take, and those of two ranks of this machine with one thread each, in turn.

In turn, because a machine is not equally fast all the time: each round times every way of training once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from atlas.config import ParallelConfig, RunConfig
from atlas.parallel.ranks import ALONE, Ranks
from atlas.runs.build import build_data, prepare_device
from experiments.scaling.measure import on_ranks, ready


class Times(NamedTuple):
    """Median seconds of a step, and how many times as fast as one process two ranks are: a median over rounds."""

    alone: float
    rows: float  # of two ranks, each with half of the rows
    sequences: float  # of two ranks, each with half of every sequence
    faster_by_rows: float
    faster_by_sequences: float


def of_two_ranks(config: RunConfig, rounds: int) -> Times:
    seconds = on_ranks(2, _rounds, config, rounds)[0]
    alone, rows, sequences = zip(*seconds, strict=True)
    return Times(median(alone), median(rows), median(sequences), _faster(alone, rows), _faster(alone, sequences))


def _faster(before: Sequence[float], now: Sequence[float]) -> float:
    return median(one / other for one, other in zip(before, now, strict=True))


def _rounds(ranks: Ranks, config: RunConfig, rounds: int) -> list[list[float]]:
    halves = replace(config, parallel=ParallelConfig(context=2))
    return _timed(ranks, [(config, ALONE), (config, ranks), (halves, ranks)], rounds)


def _timed(ranks: Ranks, ways: Sequence[tuple[RunConfig, Ranks]], rounds: int) -> list[list[float]]:
    """Seconds of a step by round and way. Rank 0 alone trains by itself; the others wait for it."""
    prepare_device(ways[0][0].device)
    data, runs = build_data(ways[0][0]), [(*ready(*way), way[1]) for way in ways]
    seconds = []
    for number in range(1, rounds + 2):
        of_round = []
        for state, step, trained_by in runs:
            batch = data.batch(number, step.rows)
            ranks.gather(None)
            began = time.perf_counter()
            if trained_by is ranks or ranks.first:
                step(state, batch)
            ranks.gather(None)
            of_round.append(time.perf_counter() - began)
        seconds.append(of_round)
    return seconds[1:]  # kernels are built in the first one
