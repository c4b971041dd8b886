"""Text with a share of recall: a run that learns language and teaches its memory to retrieve.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from atlas.config import require
from atlas.config.values import Share
from atlas.data.batch import Batch, rows_of_batch
from atlas.data.bigram import BIGRAM
from atlas.data.corpus import Corpus, Encoding, ValidationShare
from atlas.data.needles import NeedleFormat
from atlas.data.recall import RecallTask
from atlas.data.source import HandedOver
from atlas.data.text import CorpusData, FileData


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


@dataclass(kw_only=True, eq=False)
class RecallAndText(HandedOver):
    """Recall rows first, text rows after them; there are `share * B` of them, see `recall_rows`.

    Recall rows are always fresh. A text row is fresh where text is (see `CorpusData`), and where the row was a recall
    row in the step before.
    """

    recall: RecallTask
    recall_share_start: Share
    recall_share_end: Share
    recall_hold: Share
    recall_blend_end: Share

    baseline_name = BIGRAM

    def __post_init__(self) -> None:
        self.share = RecallShare(
            start=self.recall_share_start,
            end=self.recall_share_end,
            hold=self.recall_hold,
            blend_end=self.recall_blend_end,
        )
        self.text = self.make_text()
        self.recall.require_fit(self.sequence)

    def make_text(self) -> CorpusData:
        raise NotImplementedError

    @property
    def vocabulary(self) -> int:
        return self.text.vocabulary

    @property
    def task(self) -> RecallTask:
        return self.recall

    @property
    def corpus(self) -> Corpus:
        return self.text.corpus

    @property
    def needles(self) -> NeedleFormat:
        return self.task.format

    def recall_rows(self, step: int) -> int:
        """Recall rows of the whole batch of a step: rows 0 .. this number - 1. Less than a row is one in some steps."""
        wanted = self.share.at((step - 1) / self.steps) * self.batch_size
        return round(wanted) or floor(wanted * step) - floor(wanted * (step - 1))

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


@dataclass(kw_only=True, eq=False)
class MixedData(RecallAndText):
    """Text files with a share of recall. `paths` = [] reads the standard library."""

    paths: Sequence[str]
    encoding: Encoding
    validation_share: ValidationShare

    def make_text(self) -> CorpusData:
        return FileData(
            paths=self.paths,
            encoding=self.encoding,
            validation_share=self.validation_share,
            **self.handed_over(),
        )
