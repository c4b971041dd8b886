"""Batches from a token store.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atlas.config import require
from atlas.data.batch import Batch, rows_of_batch
from atlas.data.mixed import RecallAndText
from atlas.data.needles import Tokens
from atlas.data.recall import RecallTask
from atlas.data.sampler import VALIDATION_SEED, Stream, generator
from atlas.data.separate import padding_share, separate_rows
from atlas.data.store import StoreSplit, TokenStore
from atlas.data.store_corpus import StoreCorpus, load_store
from atlas.data.text import CorpusData

Documents = Literal["packed", "separate"]
SAMPLE_DOCUMENTS = 1 << 20


@dataclass(kw_only=True, eq=False)
class TokenData(CorpusData):
    """Sequences of the store at `path`. Only the pages that a batch touches are read.

    `documents=packed`: as they come, an end-of-document id between them; rows are drawn as those of text are, see
    `CorpusData`. `documents=separate`: a row holds one document or T tokens of it, and the rows of a batch are about
    equally long, see `separate.py`. A batch of short ones has more rows, of about B T tokens in all.
    """

    path: str
    documents: Documents

    def __post_init__(self) -> None:
        require(bool(self.path), "data.path", self.path, "the folder of a token store, made by python -m atlas.prepare")
        fits = self.documents == "packed" or not self.carry_memory
        allowed = "false with data.documents=separate: each row begins anew"
        require(fits, "train.carry_memory", self.carry_memory, allowed)

    def load(self) -> StoreCorpus:
        return load_store(self.path, "data.path")

    @property
    def vocabulary(self) -> int:
        return self.corpus.symbols.vocabulary

    @property
    def store(self) -> TokenStore:
        assert isinstance(self.corpus, StoreCorpus)
        return self.corpus.store

    def rows(self, step: int, rows: range) -> tuple[Tokens, NDArray[np.bool_]]:
        self.store.release()  # what the batch before has read
        return super().rows(step, rows)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        if self.documents == "packed":
            return super().batch(step, rows)
        return self._of_documents(generator(self.seed, Stream.text, step), self.store.train, rows)

    def validation(self, index: int) -> Batch:
        if self.documents == "packed":
            return super().validation(index)
        return self._of_documents(generator(VALIDATION_SEED, Stream.validation, index), self.store.validation)

    def describe(self) -> dict[str, str | int | float]:
        cut = cut_share(self.store.train.ends, self.sequence, packed=self.documents == "packed")
        shares = {"documents_cut": cut}
        if self.documents == "separate":
            shares["padding"] = padding_share(self.store.train, self.batch_size, self.sequence)
        return super().describe() | {name: round(share, 4) for name, share in shares.items()}

    def _of_documents(self, rng: np.random.Generator, split: StoreSplit, rows: range | None = None) -> Batch:
        """`rows`: of the batch, each stands for its share of the documents. What follows a document does not count."""
        self.store.release()  # what the batch before has read
        whole = separate_rows(rng, split, self.batch_size, self.sequence)
        count, own = len(whole.starts), rows_of_batch(rows, self.batch_size)
        part = slice(count * own.start // self.batch_size, count * own.stop // self.batch_size)
        starts, targets = whole.starts[part], whole.targets[part]
        places = np.arange(whole.targets.max() + 1)
        inside = places <= targets[:, None]
        tokens = np.where(inside, split.tokens[np.minimum(starts[:, None] + places, len(split.tokens) - 1)], self._end)
        flags = np.ones(len(starts), dtype=np.bool_)
        return Batch.from_tokens(tokens, inside[:, 1:].astype(np.float32), ~flags, flags)

    @property
    def _end(self) -> int:
        return self.store.record.end_of_document


def cut_share(ends: NDArray[np.int64], sequence: int, *, packed: bool) -> float:
    """The share of tokens whose document is not whole in their row, from the ends of the first `SAMPLE_DOCUMENTS`.

    A packed row begins anywhere: of the rows that hold a given token of a document of n <= T tokens, n - 1 of T cut it.
    Otherwise a row begins with a document, whose end is the target of the row's last token at the latest.
    """
    lengths = np.diff(np.asarray(ends[:SAMPLE_DOCUMENTS]), prepend=0).astype(np.float64)
    packed_cut = np.where(lengths > sequence, 1.0, (lengths - 1) / sequence)
    cut = packed_cut if packed else lengths - 1 > sequence
    return float((lengths * cut).sum() / lengths.sum())


@dataclass(kw_only=True, eq=False)
class MixedTokenData(RecallAndText):
    """A store with a share of recall sequences, whose needles and haystacks are made of the store's own ids."""

    path: str

    def make_text(self) -> CorpusData:
        return TokenData(path=self.path, documents="packed", **self.handed_over())

    @property
    def task(self) -> RecallTask:
        return self.recall.in_symbols(self.corpus.symbols)
