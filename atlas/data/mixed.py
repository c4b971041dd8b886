"""Text with a share of recall: a run that learns language and teaches its memory to retrieve."""

# B sequences, T tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from atlas.config import require
from atlas.config.values import Share
from atlas.data.batch import Batch, rows_of_batch
from atlas.data.corpus import Corpus, Encoding, Part, load_corpus
from atlas.data.needles import NeedleFormat
from atlas.data.recall import RecallTask
from atlas.data.text import CorpusData


@dataclass(frozen=True, kw_only=True)
class RecallShare:
    """Share of a batch's rows that are recall sequences, over the steps of a run.

    `start` during the first `hold` of the steps, then linearly to `end`, which it reaches at `blend_end` of the steps.
    """

    start: float
    end: float
    hold: float
    blend_end: float

    def __post_init__(self) -> None:
        shares = {"share_start": self.start, "share_end": self.end, "hold": self.hold, "blend_end": self.blend_end}
        for key, value in shares.items():
            holds = isinstance(value, int | float) and 0 <= value <= 1
            require(holds, f"data.recall_{key}", value, "in [0, 1]")
        allowed = f">= data.recall_hold={self.hold}"
        require(self.hold <= self.blend_end, "data.recall_blend_end", self.blend_end, allowed)

    def at(self, progress: float) -> float:
        """Share at `progress` = (step - 1) / steps of the run."""
        if progress < self.hold:
            return self.start
        if progress >= self.blend_end:
            return self.end
        blended = (progress - self.hold) / (self.blend_end - self.hold)
        return self.start + (self.end - self.start) * blended


class RecallAndText:
    """Recall rows first, text rows after them; the number of recall rows is `round(share * B)`.

    Recall rows are always fresh. A text row is fresh where text is (see `CorpusData`), and where the row was a recall
    row in the step before.
    """

    def __init__(self, text: CorpusData, recall: RecallTask, share: RecallShare, *, steps: int) -> None:
        recall.require_fit(text.sequence)
        self.text, self.share, self.steps = text, share, steps
        self.sequence, self.batch_size, self.seed = text.sequence, text.batch_size, text.seed
        self._recall = recall

    @property
    def vocabulary(self) -> int:
        return self.text.vocabulary

    @property
    def task(self) -> RecallTask:
        return self._recall

    @property
    def corpus(self) -> Corpus:
        return self.text.corpus

    @property
    def needles(self) -> NeedleFormat:
        return self.task.format

    def recall_rows(self, step: int) -> int:
        """Recall rows of the whole batch of a step: rows 0 .. this number - 1."""
        return round(self.share.at((step - 1) / self.steps) * self.batch_size)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        rows = rows_of_batch(rows, self.batch_size)
        tokens, fresh = self.text.rows(step, rows)
        weights = np.ones((len(rows), self.sequence), dtype=np.float32)
        recall = range(rows.start, min(rows.stop, self.recall_rows(step)))
        if recall:
            sequences = self.task.training_rows(self.seed, step, recall, self.sequence, self.text.corpus.train)
            tokens[: len(recall)] = sequences.tokens
            weights[: len(recall)] = self.task.weights(sequences)
        row = np.array(rows)
        is_recall = row < self.recall_rows(step)
        was_recall = row < (self.recall_rows(step - 1) if step > 1 else 0)
        return Batch.from_tokens(tokens, weights, is_recall, fresh | was_recall | is_recall)

    def validation(self, index: int) -> Batch:
        """Text only."""
        return self.text.validation(index)

    def baseline(self, batches: int) -> float:
        """Loss of a bigram model of the training text."""
        return self.text.baseline(batches)

    def describe(self) -> dict[str, str | int | float]:
        shares = {"recall_share_start": self.share.start, "recall_share_end": self.share.end}
        return self.text.describe() | shares


class MixedData(RecallAndText):
    """Text files with a share of recall. `paths` = [] reads the standard library."""

    def __init__(
        self,
        *,
        recall: RecallTask,
        recall_share_start: Share,
        recall_share_end: Share,
        recall_hold: Share,
        recall_blend_end: Share,
        paths: Sequence[str],
        encoding: Encoding,
        validation_share: Part,
        sequence: int,
        batch_size: int,
        seed: int,
        steps: int,
        carry_memory: bool,
    ) -> None:
        share = RecallShare(
            start=recall_share_start, end=recall_share_end, hold=recall_hold, blend_end=recall_blend_end
        )
        text = CorpusData(
            load=partial(load_corpus, paths, encoding, validation_share),
            sequence=sequence,
            batch_size=batch_size,
            seed=seed,
            carry_memory=carry_memory,
        )
        super().__init__(text, recall, share, steps=steps)
