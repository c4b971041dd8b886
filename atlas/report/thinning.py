"""Thinning of lines for the page: extremes and events are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from atlas.report.metric_columns import Floats


def thin(values: Floats, limit: int, kept: Sequence[int] = ()) -> NDArray[np.int64]:
    """Indices of at most `limit` of the N finite values, and of `kept`.

    The lowest and the highest value of each stretch stay, and so do the first and the last.
    """
    if len(values) <= limit:
        return np.arange(len(values))
    stretches = np.array_split(np.arange(len(values)), max(1, (limit - 2) // 2))
    lowest = [stretch[values[stretch].argmin()] for stretch in stretches]
    highest = [stretch[values[stretch].argmax()] for stretch in stretches]
    return np.unique([0, len(values) - 1, *lowest, *highest, *kept]).astype(np.int64)


def moving_mean(values: Floats, width: int) -> Floats:
    """Mean of each value and the `width` - 1 before it: N - width + 1 of them, the first at the value `width` - 1."""
    # From the start of its block to each value, and from each value to the end: a sum over all values before would lose
    # the small ones behind a large one.
    blocks = np.pad(values, (0, -len(values) % width)).reshape(-1, width)
    started = blocks.cumsum(axis=1).ravel()
    ended = blocks[:, ::-1].cumsum(axis=1)[:, ::-1].ravel()
    count = len(values) - width + 1
    sums = ended[:count] + started[width - 1 : len(values)]
    sums[::width] = ended[:count:width]  # a whole block
    return np.asarray(sums / width)
