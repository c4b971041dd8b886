"""Batches from a token store."""

# B sequences, T tokens

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from atlas.config import require
from atlas.config.values import Share
from atlas.data.mixed import RecallAndText, RecallShare
from atlas.data.needles import Tokens
from atlas.data.recall import RecallTask
from atlas.data.store_corpus import StoreCorpus, load_store
from atlas.data.text import CorpusData


class TokenData(CorpusData):
    """Sequences of the store at `path`, documents as they come with an end-of-document id between them.

    Rows are drawn as those of text are, see `CorpusData`. Only the pages that a batch touches are read.
    """

    def __init__(self, *, path: str, sequence: int, batch_size: int, seed: int, steps: int, carry_memory: bool) -> None:
        require(bool(path), "data.path", path, "the folder of a token store, made by python -m atlas.prepare")
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

    def rows(self, step: int, rows: range) -> tuple[Tokens, NDArray[np.bool_]]:
        assert isinstance(self.corpus, StoreCorpus)
        self.corpus.store.release()  # what the batch before has read
        return super().rows(step, rows)


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
            path=path, sequence=sequence, batch_size=batch_size, seed=seed, steps=steps, carry_memory=carry_memory
        )
        super().__init__(text, recall, share, steps=steps)

    @property
    def task(self) -> RecallTask:
        return self._recall.in_symbols(self.corpus.symbols)
