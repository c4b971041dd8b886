"""Fixed sets of MQAR sequences, and the batches of an epoch.

Legend: N sequences, L tokens, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from atlas.data.batch import Batch
from atlas.data.mqar import IGNORED, MQARSequences, mqar_sequences
from experiments.mqar.contestants import LENGTHS, VOCABULARY

TRAINING, TEST = 0, 1  # seeds of the two sets; a model's seed changes neither


def examples(count: int, length: int, part: int) -> MQARSequences:
    """`count` of zoology's sequences of L = `length` tokens; filler is id 0."""
    rng = np.random.default_rng([part, length])
    return mqar_sequences(rng, count, length, vocabulary=VOCABULARY, pairs=LENGTHS[length], random_filler=False)


def share_within(sequences: MQARSequences, reach: int | None) -> float:
    """Share of the values at most `reach` tokens before their question; None = all."""
    if reach is None:
        return 1.0
    asked, written = sequences.labels[:, :, None], sequences.inputs[:, None, :]  # [N, L, 1], [N, 1, L]
    _, question, value = np.nonzero(asked == written)  # a value is written once, and is no filler
    return float(np.mean(question - value <= reach))


def batches(sequences: MQARSequences, rows: int, order: np.random.Generator | None = None) -> Iterator[Batch]:
    """Every sequence once, as they stand or shuffled by `order`; a shuffled epoch leaves out a last short batch."""
    count = len(sequences.inputs)
    places = np.arange(count) if order is None else order.permutation(count)
    last = count if order is None else count - count % rows
    for first in range(0, last, rows):
        yield batch_of(sequences, places[first : first + rows])


def batch_of(sequences: MQARSequences, places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
    """[B, L]. The targets are zoology's labels: the value, at the place of its key; only these count."""
    labels = torch.from_numpy(sequences.labels[places])
    every = torch.ones(len(places), dtype=torch.bool)
    counted = (labels != IGNORED).float()
    return Batch(torch.from_numpy(sequences.inputs[places]), labels.clamp(min=0), counted, every, every)
