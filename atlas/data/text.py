"""Text, one byte a token: batches from the two parts of a corpus.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from atlas.config import VOCABULARY, require
from atlas.data.batch import Batch, rows_of_batch
from atlas.data.bigram import BIGRAM, Bigram, SparseBigram
from atlas.data.corpus import Corpus, Encoding, ValidationShare, load_corpus, spread, stdlib_corpus
from atlas.data.needles import Tokens
from atlas.data.sampler import VALIDATION_SEED, Random, RowGenerators, Stream, generator
from atlas.data.source import HandedOver

SAMPLE_TOKENS = 1 << 21  # of the training text, for a bigram of a large vocabulary


@dataclass(kw_only=True, eq=False)
class CorpusData(HandedOver):
    """Sequences of T tokens of the corpus that `load` reads. Every target counts the same.

    Without `carry_memory` every row starts at a random place. With it, row r reads one segment after the other: the
    training bytes are cut into segments of T tokens (from an offset that depends on the seed), row r starts at
    segment r M / B of M, and after the last segment it goes on with the first, where it is fresh again.
    """

    needles = None
    baseline_name = BIGRAM

    def load(self) -> Corpus:
        raise NotImplementedError

    @property
    def vocabulary(self) -> int:
        return VOCABULARY

    @cached_property
    def corpus(self) -> Corpus:
        corpus = self.load()
        corpus.require_length(self.sequence)
        return corpus

    def rows(self, step: int, rows: range) -> tuple[Tokens, NDArray[np.bool_]]:
        """Tokens [N, T + 1] of N rows of a training step and which of them are fresh [N]."""
        if self.carry_memory:
            return self._segments(step, np.array(rows))
        rng = RowGenerators.of_step(self.seed, Stream.text, step, rows)
        return self._stretches(rng, len(rows), self.corpus.train), np.ones(len(rows), dtype=np.bool_)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        tokens, fresh = self.rows(step, rows_of_batch(rows, self.batch_size))
        return self._to_batch(tokens, fresh)

    def validation(self, index: int) -> Batch:
        rng = generator(VALIDATION_SEED, Stream.validation, index)
        tokens = self._stretches(rng, self.batch_size, self.corpus.validation)
        return self._to_batch(tokens, np.ones(self.batch_size, dtype=np.bool_))

    def baseline(self, batches: int) -> float:
        """Loss of a bigram model of the training text; where the vocabulary is large, of a sample of it."""
        size = self.vocabulary
        bigram = Bigram(self.corpus.train) if size == VOCABULARY else SparseBigram(self._sample(), size)
        return bigram.loss([self.validation(index) for index in range(batches)])

    def describe(self) -> dict[str, str | int | float]:
        return self.corpus.describe()

    def _sample(self) -> Tokens:
        """Training tokens of every source, as many as its share of the rows; a short one comes again and again."""
        sources = self.corpus.sources
        count = min(SAMPLE_TOKENS, sum(len(one.train) for one, _ in sources))
        shares = [(one.train, round(share * count)) for one, share in sources]
        return np.concatenate([np.resize(spread(train, most), most) for train, most in shares if most])

    def _stretches(self, rng: Random, count: int, part: Tokens) -> Tokens:
        starts = rng.integers(0, len(part) - self.sequence, (count,), dtype=np.int64)
        return np.take(part, starts[:, None] + np.arange(self.sequence + 1))

    def _segments(self, step: int, rows: NDArray[np.int64]) -> tuple[Tokens, NDArray[np.bool_]]:
        room = len(self.corpus.train) - 1 - self.sequence  # the offset must leave one whole segment and its last target
        rng = generator(self.seed, Stream.carry_offset, 0)
        offset = int(rng.integers(0, min(self.sequence, room + 1), dtype=np.int64))
        segments = (len(self.corpus.train) - 1 - offset) // self.sequence
        first = rows * segments // self.batch_size
        segment = (first + step - 1) % segments
        starts = offset + segment * self.sequence
        tokens = np.take(self.corpus.train, starts[:, None] + np.arange(self.sequence + 1))
        return tokens, (segment == 0) | (step == 1)

    def _to_batch(self, tokens: Tokens, fresh: NDArray[np.bool_]) -> Batch:
        weights = np.ones((len(tokens), self.sequence), dtype=np.float32)
        return Batch.from_tokens(tokens, weights, np.zeros(len(tokens), dtype=np.bool_), fresh)


@dataclass(kw_only=True, eq=False)
class StdlibData(CorpusData):
    """The source text of the running Python's standard library: real text on every machine, no download."""

    validation_share: ValidationShare

    def load(self) -> Corpus:
        return stdlib_corpus(self.validation_share)


@dataclass(kw_only=True, eq=False)
class FileData(CorpusData):
    """Text files; `paths` = [] reads the standard library. `encoding` is bytes or utf8 (checked)."""

    paths: Sequence[str]  # glob patterns, `**` crosses folders
    encoding: Encoding
    validation_share: ValidationShare

    def load(self) -> Corpus:
        return load_corpus(self.paths, self.encoding, self.validation_share)


@dataclass(kw_only=True, eq=False)
class TextData(FileData):
    """The user's files."""

    def __post_init__(self) -> None:
        allowed = "at least one file or pattern, as in data.paths=[**/*.md]"
        require(len(self.paths) > 0, "data.paths", list(self.paths), allowed)
