"""Fixed sets of MQAR sequences, and the batches of an epoch.

Legend: N sequences, L tokens, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from atlas.data.batch import Batch
from atlas.data.mqar import IGNORED, MQARSequences, mqar_sequences
from experiments.mqar.contestants import VOCABULARY
from experiments.mqar.tasks import Segment, Task

TRAINING, TEST = 0, 1  # seeds of the two sets; a model's seed changes neither


def examples(count: int, segment: Segment, part: int, *, random_filler: bool = False) -> MQARSequences:
    """`count` of zoology's sequences; filler is id 0, or any id where `random_filler`."""
    tokens, pairs, _ = segment
    rng = np.random.default_rng([part, tokens, pairs] if random_filler else [part, tokens])
    return mqar_sequences(rng, count, tokens, vocabulary=VOCABULARY, pairs=pairs, random_filler=random_filler)


def share_within(sequences: MQARSequences, reach: int | None) -> float:
    """Share of the values at most `reach` tokens before their question; None = all."""
    if reach is None:
        return 1.0
    context = 2 * int(np.sum(sequences.labels[0] != IGNORED))  # tokens of all pairs; a value is in it once
    asked, written = sequences.labels[:, :, None], sequences.inputs[:, None, :context]  # [N, L, 1], [N, 1, context]
    _, question, value = np.nonzero(asked == written)
    return float(np.mean(question - value <= reach))


def epoch(task: Task, segments: list[MQARSequences], order: np.random.Generator) -> Iterator[Batch]:
    """The batches of the `segments` of training, one segment after the other; `order` changes where they are shuffled.

    zoology shuffles rows of one length; data of several lengths it takes as they stand.
    """
    for sequences in segments:
        yield from batches(sequences, task.rows, order if task.shuffled else None)


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
