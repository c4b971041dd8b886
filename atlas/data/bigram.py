"""The bigram baseline: the loss of a model that sees only the last byte, on the same targets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas.data.batch import Batch

BYTES = 256
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # candidates for the weight of the unigram prior, in counts


class Bigram:
    """`p(b | a) = (c(a, b) + s u(b)) / (c(a) + s)`: counts, interpolated with the add-one unigram distribution u.

    The strength s is the candidate with the best leave-one-out likelihood on the training bytes.
    """

    def __init__(self, training: NDArray[np.uint8]) -> None:
        pairs = training[:-1].astype(np.uint16) * BYTES + training[1:]
        counts = np.bincount(pairs, minlength=BYTES * BYTES).reshape(BYTES, BYTES).astype(np.float64)
        unigram = (np.bincount(training, minlength=BYTES) + 1.0) / (len(training) + BYTES)
        self.strength = max(STRENGTHS, key=lambda strength: _left_out(counts, unigram, strength))
        prior = self.strength * unigram
        self.nats = -np.log((counts + prior) / (counts.sum(axis=1, keepdims=True) + self.strength))  # [a, b]

    def loss(self, batches: list[Batch]) -> float:
        """Mean loss, nats per token, over the targets of all batches, weighted as they are."""
        total = weight = 0.0
        for batch in batches:
            weights = batch.weights.double().numpy()
            total += float((weights * self.nats[batch.inputs.numpy(), batch.targets.numpy()]).sum())
            weight += float(weights.sum())
        return total / weight


def _left_out(counts: NDArray[np.float64], unigram: NDArray[np.float64], strength: float) -> float:
    """Log-likelihood of every training pair under the counts of all the others."""
    seen = counts > 0
    rest = np.where(seen, counts - 1, 0) + strength * unigram
    return float(
        (counts * np.log(rest / (np.maximum(counts.sum(axis=1, keepdims=True) - 1, 0) + strength)))[seen].sum()
    )
