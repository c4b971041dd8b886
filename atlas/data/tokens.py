"""Batches from a token store."""

# B sequences, T tokens

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atlas.config import require
from atlas.config.values import Share
from atlas.data.batch import Batch, rows_of_batch
from atlas.data.mixed import RecallAndText, RecallShare
from atlas.data.needles import Tokens
from atlas.data.recall import RecallTask
from atlas.data.sampler import VALIDATION_SEED, Stream, generator
from atlas.data.separate import padding_share, separate_rows
from atlas.data.store import StoreSplit, TokenStore
from atlas.data.store_corpus import StoreCorpus, load_store
from atlas.data.text import CorpusData

Documents = Literal["packed", "separate"]


class TokenData(CorpusData):
    """Sequences of the store at `path`. Only the pages that a batch touches are read.

    `documents=packed`: as they come, an end-of-document id between them; rows are drawn as those of text are, see
    `CorpusData`. `documents=separate`: a row holds one document or T tokens of it, and the rows of a batch are about
    equally long, see `separate.py`. A batch of short ones has more rows, in all at most B T tokens.
    """

    def __init__(
        self,
        *,
        path: str,
        documents: Documents,
        sequence: int,
        batch_size: int,
        seed: int,
        steps: int,
        carry_memory: bool,
    ) -> None:
        require(bool(path), "data.path", path, "the folder of a token store, made by python -m atlas.prepare")
        allowed = "false with data.documents=separate: each row begins anew"
        require(documents == "packed" or not carry_memory, "train.carry_memory", carry_memory, allowed)
        self.documents = documents
        super().__init__(
            load=partial(load_store, path, "data.path"),
            sequence=sequence,
            batch_size=batch_size,
            seed=seed,
            carry_memory=carry_memory,
        )

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
        if self.documents == "packed":
            return super().describe()
        share = padding_share(self.store.train, self.batch_size, self.sequence)
        return super().describe() | {"padding": round(share, 4)}

    def _of_documents(self, rng: np.random.Generator, split: StoreSplit, rows: range | None = None) -> Batch:
        """`rows`: of the batch, each stands for as many documents. What follows a document in a row does not count."""
        self.store.release()  # what the batch before has read
        whole = separate_rows(rng, split, self.batch_size, self.sequence)
        several, own = len(whole.starts) // self.batch_size, rows_of_batch(rows, self.batch_size)
        part = slice(several * own.start, several * own.stop)
        starts, targets = whole.starts[part], whole.targets[part]
        places = np.arange(whole.targets.max() + 1)
        inside = places <= targets[:, None]
        tokens = np.where(inside, split.tokens[np.minimum(starts[:, None] + places, len(split.tokens) - 1)], self._end)
        flags = np.ones(len(starts), dtype=np.bool_)
        return Batch.from_tokens(tokens, inside[:, 1:].astype(np.float32), ~flags, flags)

    @property
    def _end(self) -> int:
        return self.store.record.end_of_document


class MixedTokenData(RecallAndText):
    """A store with a share of recall sequences, whose needles and haystacks are made of the store's own ids."""

    def __init__(
        self,
        *,
        path: str,
        recall: RecallTask,
        recall_share_start: Share,
        recall_share_end: Share,
        recall_hold: Share,
        recall_blend_end: Share,
        sequence: int,
        batch_size: int,
        seed: int,
        steps: int,
        carry_memory: bool,
    ) -> None:
        share = RecallShare(
            start=recall_share_start, end=recall_share_end, hold=recall_hold, blend_end=recall_blend_end
        )
        text = TokenData(
            path=path,
            documents="packed",
            sequence=sequence,
            batch_size=batch_size,
            seed=seed,
            steps=steps,
            carry_memory=carry_memory,
        )
        super().__init__(text, recall, share, steps=steps)

    @property
    def task(self) -> RecallTask:
        return self._recall.in_symbols(self.corpus.symbols)
