"""The places of needles and queries in a sequence.

Legend: N sequences, L tokens (plus one: the last target), P pairs, E events, slot = bytes of an event.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atlas.data.needles import distinct
from atlas.data.sampler import Random

Layout = tuple[NDArray[np.int64], NDArray[np.int64]]  # starts [N, E] and pairs [N, E] of `write_needles`


def random_layout(
    rng: Random,
    count: int,
    length: int,
    *,
    slot: int,
    pairs: int,
    queries: int,
    distance_min: int,
    distance_max: int,
) -> Layout:
    """Needles and queries in random order at random places, for training.

    A query asks for one of the pairs, all equally likely, whose latest event (needle or query) lies more than
    `distance_min` and at most `distance_max` tokens back, so attention can never copy an answer from an event within
    `distance_min`. The distances grow with `pairs` and shrink with `queries`. Where no pair qualifies, a further
    needle is written, and once all are, the event is left out: a sequence has `queries` queries or, where distances
    are tight, fewer.
    """
    events = pairs + queries
    gaps = rng.integers(0, length + 1 - events * slot + 1, (count, events), dtype=np.int64)
    starts = np.sort(gaps, axis=1) + np.arange(events) * slot
    shown = np.full((count, events), -1, dtype=np.int64)
    latest = np.full((count, pairs), -2 * length - 2, dtype=np.int64)  # beyond every distance_max: not written yet
    written = np.zeros(count, dtype=np.int64)
    asked = np.zeros(count, dtype=np.int64)
    coin = rng.random((count, events))
    lot = rng.random((count, events, pairs))
    row = np.arange(count)
    for event in range(events):
        distance = starts[:, event, None] - latest
        draw = np.where((distance > distance_min) & (distance <= distance_max), lot[:, event], np.inf)
        pair = draw.argmin(axis=1)
        needles_left, queries_left = pairs - written, queries - asked
        ask = (draw[row, pair] < np.inf) & (coin[:, event] * (needles_left + queries_left) < queries_left)
        write = ~ask & (needles_left > 0)
        shown[:, event] = np.where(ask, pair, np.where(write, written, -1))
        used = ask | write
        latest[row[used], shown[used, event]] = starts[used, event]
        asked += ask
        written += write
    return starts, shown


def depth_layout(
    rng: np.random.Generator,
    count: int,
    length: int,
    *,
    slot: int,
    pairs: int,
    queries: int,
    depth: float,
    depths: Sequence[float] = (),
) -> Layout:
    """One needle at a given depth and the queries at the end, for probes.

    The needle of pair 0 stands at `depth` of the haystack (0 = its start, 1 = just before the queries). The others
    stand at others of `depths`, where questions of the same probe ask, so that no place tells which needle is asked
    for; what is left of them at random places. The sequence ends with queries of pairs 0 .. queries - 1 in random
    order.
    """
    cells = (length + 1) // slot - queries
    if not 1 <= queries <= pairs <= cells:
        raise ValueError(f"queries={queries}: needs 1 <= queries <= pairs={pairs} <= {cells} places of {slot} tokens")
    first, *wanted = (round(one * (cells - 1)) for one in (depth, *depths))
    asked = np.array(sorted({*wanted} - {first}), dtype=np.int64)
    free = np.setdiff1d(np.arange(cells), [first, *asked])
    known = min(pairs - 1, len(asked))
    parts = (
        np.full((count, 1), first),
        asked[distinct(rng, count, known, len(asked))],
        free[distinct(rng, count, pairs - 1 - known, len(free))],
    )
    needles = np.concatenate(parts, axis=1) * slot
    ends = length + 1 - slot * np.arange(queries, 0, -1)
    starts = np.concatenate([needles, np.tile(ends, (count, 1))], axis=1)
    order = np.tile(np.arange(pairs), (count, 1))
    return starts, np.concatenate([order, distinct(rng, count, queries, queries)], axis=1)
