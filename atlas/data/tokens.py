"""Batches from a token store."""

# B sequences, T tokens

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
from atlas.data.sampler import VALIDATION_SEED, Random, RowGenerators, Stream, generator
from atlas.data.store import StoreSplit, TokenStore
from atlas.data.store_corpus import StoreCorpus, load_store
from atlas.data.text import CorpusData

Documents = Literal["packed", "separate"]
SAMPLE_DOCUMENTS = 1 << 20


@dataclass(kw_only=True, eq=False)
class TokenData(CorpusData):
    """Sequences of the store at `path`. Only the pages that a batch touches are read.

    `documents=packed`: as they come, an end-of-document id between them; rows are drawn as those of text are, see
    `CorpusData`. `documents=separate`: a row holds T tokens of one document, or all of a shorter one and padding, which
    does not count. The k-th row of a document begins at its token k T; a row is drawn by the number of its tokens.
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
        rows = rows_of_batch(rows, self.batch_size)
        self.store.release()
        return self._of_documents(
            RowGenerators.of_step(self.seed, Stream.text, step, rows), len(rows), self.store.train
        )

    def validation(self, index: int) -> Batch:
        if self.documents == "packed":
            return super().validation(index)
        rng = generator(VALIDATION_SEED, Stream.validation, index)
        return self._of_documents(rng, self.batch_size, self.store.validation)

    def describe(self) -> dict[str, str | int | float]:
        cut = cut_share(self.store.train.ends, self.sequence, packed=self.documents == "packed")
        shares = (
            {"documents_cut": cut} if self.documents == "packed" else {"documents_cut": cut, "padding": self.padding}
        )
        return super().describe() | {name: round(share, 4) for name, share in shares.items()}

    @property
    def padding(self) -> float:
        """The share of padding in the rows of separate documents."""
        return padding(self.store.train.ends, self.sequence)

    def _of_documents(self, rng: Random, count: int, split: StoreSplit) -> Batch:
        places = rng.integers(0, len(split.tokens), (count,), dtype=np.int64)
        end = self.store.record.end_of_document
        tokens = np.full((count, self.sequence + 1), end, dtype=np.uint32)
        weights = np.zeros((count, self.sequence), dtype=np.float32)
        for row, place in enumerate(places):
            number = int(np.searchsorted(split.ends, place, side="right"))
            document = split.document(number)
            inside = int(place) - (int(split.ends[number - 1]) if number else 0)
            part = document[inside - inside % self.sequence :][: self.sequence + 1]
            tokens[row, : len(part)] = part
            weights[row, : len(part) - 1] = 1.0
        flags = np.ones(count, dtype=np.bool_)
        return Batch.from_tokens(tokens, weights, ~flags, flags)


def cut_share(ends: NDArray[np.int64], sequence: int, *, packed: bool) -> float:
    """The share of tokens whose document is not whole in their row, from the ends of the first `SAMPLE_DOCUMENTS`.

    A packed row begins anywhere: of the rows that hold a given token of a document of n <= T tokens, n - 1 of T cut it.
    """
    lengths = np.diff(np.asarray(ends[:SAMPLE_DOCUMENTS]), prepend=0).astype(np.float64)
    cut = np.where(lengths > sequence, 1.0, (lengths - 1) / sequence if packed else 0.0)
    return float((lengths * cut).sum() / lengths.sum())


def padding(ends: NDArray[np.int64], sequence: int) -> float:
    """The share of padding in rows of separate documents, from the ends of the first `SAMPLE_DOCUMENTS`."""
    lengths = np.diff(np.asarray(ends[:SAMPLE_DOCUMENTS]), prepend=0)
    full, rest = np.divmod(lengths, sequence)
    filled = float((full * float(sequence) ** 2 + rest.astype(np.float64) ** 2).sum())
    return 1 - filled / (sequence * float(lengths.sum()))


@dataclass(kw_only=True, eq=False)
class MixedTokenData(RecallAndText):
    """A store with a share of recall sequences, whose needles and haystacks are made of the store's own ids."""

    path: str

    def make_text(self) -> CorpusData:
        return TokenData(path=self.path, documents="packed", **self.handed_over())

    @property
    def task(self) -> RecallTask:
        return self.recall.in_symbols(self.corpus.symbols)
