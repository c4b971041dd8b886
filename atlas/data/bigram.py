"""The bigram baseline: the loss of a model that sees only the last byte, on the same targets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas.data.batch import Batch
from atlas.data.needles import Tokens
from atlas.data.symbols import BYTES

BIGRAM = "bigram baseline"  # its name in reports
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # candidates for the weight of the unigram prior, in counts

STRENGTH = 100.0  # of the unigram prior where the vocabulary is large: most pairs are new


class Bigram:
    """`p(b | a) = (c(a, b) + s u(b)) / (c(a) + s)`: counts, interpolated with the add-one unigram distribution u.

    The strength s is the candidate with the best leave-one-out likelihood on the training bytes.
    """

    def __init__(self, training: Tokens) -> None:
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


class SparseBigram:
    """The same of a vocabulary whose pairs no table holds: counts of the pairs that a sample of the text has.

    The strength of the prior is fixed.
    """

    def __init__(self, sample: Tokens, vocabulary: int) -> None:
        sample = sample.astype(np.int64)
        self.vocabulary = vocabulary
        self.pairs, self.counts = np.unique(sample[:-1] * vocabulary + sample[1:], return_counts=True)
        self.firsts = np.bincount(sample[:-1], minlength=vocabulary)
        self.unigram = (np.bincount(sample, minlength=vocabulary) + 1.0) / (len(sample) + vocabulary)

    def loss(self, batches: list[Batch]) -> float:
        """Mean loss, nats per token, over the targets of all batches, weighted as they are."""
        total = weight = 0.0
        for batch in batches:
            weights, first, second = (
                column.flatten().numpy() for column in (batch.weights.double(), batch.inputs, batch.targets)
            )
            pair = first * self.vocabulary + second
            place = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
            count = np.where(self.pairs[place] == pair, self.counts[place], 0)
            share = (count + STRENGTH * self.unigram[second]) / (self.firsts[first] + STRENGTH)
            total -= float((weights * np.log(share)).sum())
            weight += float(weights.sum())
        return total / weight
