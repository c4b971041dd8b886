"""Key-blind readers, which ignore the key that is asked for, and whether a model is clearly above the best of them.

Legend: n questions, m values shown before a question, b bytes of a value.
"""

from __future__ import annotations

from math import exp, lgamma, log, log1p

import numpy as np
from numpy.typing import NDArray

from atlas.probes.haystacks import Questions

CONFIDENCE = 0.99  # one-sided


def key_blind_readers(questions: Questions, counted: NDArray[np.bool_]) -> dict[str, float]:
    """Expected share of the counted questions that each reader answers, on the same samples.

    A reader sees the values before the question in their order. Of several most frequent values it takes one at random.
    """
    seen, answer = questions.seen[counted], questions.answer[counted]  # [n, m, b], [n, b]
    shown: NDArray[np.bool_] = np.all(seen >= 0, axis=-1)
    right = np.all(seen == answer[:, None], axis=-1) & shown  # [n, m]
    count = shown.sum(1)
    same = np.all(seen[:, :, None] == seen[:, None], axis=-1) & shown[:, None]  # [n, m, m]
    times = same.sum(2) * shown
    frequent = np.equal(times, times.max(1, keepdims=True))
    found = {
        "first value": right[:, 0],
        "last value": right[np.arange(len(right)), count - 1],
        "most frequent value": (right & frequent).sum(1) / frequent.sum(1),
        "random value": right.sum(1) / count,
    }
    return {reader: float(share.mean()) for reader, share in found.items()}


def lower_bound(found: int, trials: int) -> float:
    """Lower end of the one-sided Clopper-Pearson interval of a share, by bisection.

    The share at which `found` or more of `trials` have a probability of 1 - CONFIDENCE.
    """
    low, high = 0.0, found / trials
    for _ in range(50):
        share = (low + high) / 2
        if _tail(found, trials, share) < 1 - CONFIDENCE:
            low = share
        else:
            high = share
    return low


def _tail(found: int, trials: int, share: float) -> float:
    """Probability of `found` or more of `trials`; in logarithms, since binomial coefficients overflow."""
    if found == 0:
        return 1.0
    terms = (
        lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1) + k * log(share) + (trials - k) * log1p(-share)
        for k in range(found, trials + 1)
    )
    return sum(map(exp, terms))
