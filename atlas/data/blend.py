"""Batches from several token stores, mixed by weight.

Legend: N rows, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from atlas.config import require
from atlas.data.batch import Batch
from atlas.data.corpus import Corpus
from atlas.data.leakage import block_tokens, shared_blocks
from atlas.data.needles import Tokens
from atlas.data.sampler import VALIDATION_SEED, Random, RowGenerators, Stream, generator, of_rows
from atlas.data.store_corpus import StoreCorpus, load_store
from atlas.data.text import CorpusData

SEARCHED = 2**28  # training tokens, 60 million a second


@dataclass(frozen=True, kw_only=True)
class BlendCorpus(Corpus):
    """Several stores. `train` and `validation`, of which haystacks are made, are those of the one with the largest
    weight; `sources` has them all."""

    stores: tuple[StoreCorpus, ...]
    shares: tuple[float, ...]

    @cached_property
    def digest(self) -> str:
        """Of the stores and their shares."""
        parts = [f"{store.digest} {share!r}" for store, share in zip(self.stores, self.shares, strict=True)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @cached_property
    def leakage(self) -> float:
        """The mean of the stores, by their shares: of the validation blocks of each the share that stands in its own
        training part or, where they are not `too_large`, in that of another store."""
        return round(sum(share * self._leakage(store) for store, share in self.sources), 4)

    def _leakage(self, store: StoreCorpus) -> float:
        others = [] if self.too_large else [one.train for one in self.stores if one is not store]
        block = block_tokens(store.bytes_per_token)
        size = int(store.symbols.vocabulary)
        found = [shared_blocks(train, store.validation, block=block, symbols=size)[0] for train in others]
        return max([store.leakage, *found])

    @property
    def too_large(self) -> bool:
        """Whether a look for text that stores have in common would take more than some seconds."""
        return (len(self.stores) - 1) * sum(len(one.train) for one in self.stores) > SEARCHED

    @property
    def warnings(self) -> list[str]:
        told = "validation text of one store in the training text of another was not looked for: they are too large"
        return super().warnings + ([told] if self.too_large else [])

    @property
    def sources(self) -> Sequence[tuple[StoreCorpus, float]]:
        return list(zip(self.stores, self.shares, strict=True))

    def require_length(self, sequence: int) -> None:
        for store in self.stores:
            store.require_length(sequence)

    def describe(self) -> dict[str, str | int | float]:
        return {
            "source": self.source,
            "train_tokens": sum(len(store.train) for store in self.stores),
            "validation_in_training": self.leakage,
        }


@dataclass(kw_only=True, eq=False)
class BlendData(CorpusData):
    """Each row is a stretch of one store, which is drawn by its weight; see `CorpusData` for the rest."""

    paths: Sequence[str]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        paths, weights = list(self.paths), list(self.weights)
        require(len(paths) > 0, "data.paths", paths, "at least one folder of a token store")
        usable = all(isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
        allowed = f"{len(paths)} numbers >= 0, one for each of data.paths, not all 0"
        require(usable and len(weights) == len(paths), "data.weights", weights, allowed)
        allowed = "false with data=blend: a row changes its store"
        require(not self.carry_memory, "train.carry_memory", self.carry_memory, allowed)
        self.shares = tuple(weight / sum(weights) for weight in weights)

    @property
    def vocabulary(self) -> int:
        return self.corpus.symbols.vocabulary

    def rows(self, step: int, rows: range) -> tuple[Tokens, NDArray[np.bool_]]:
        for store in self._stores:
            store.store.release()  # what the batch before has read
        lots = RowGenerators.of_step(self.seed, Stream.blend, step, rows).random((len(rows),))
        rng = RowGenerators.of_step(self.seed, Stream.text, step, rows)
        return self._drawn(rng, lots, "train"), np.ones(len(rows), dtype=np.bool_)

    def validation(self, index: int) -> Batch:
        """Rows by weight, as in training."""
        rng = generator(VALIDATION_SEED, Stream.validation, index)
        tokens = self._drawn(rng, rng.random((self.batch_size,)), "validation")
        return self._to_batch(tokens, np.ones(self.batch_size, dtype=np.bool_))

    @property
    def _stores(self) -> tuple[StoreCorpus, ...]:
        assert isinstance(self.corpus, BlendCorpus)
        return self.corpus.stores

    def _drawn(self, rng: Random, lots: NDArray[np.float64], part: str) -> Tokens:
        """A stretch [N, T + 1] for each of `lots` [N] in [0, 1), which chooses the store."""
        chosen = np.searchsorted(np.cumsum(self.shares)[:-1], lots, side="right")
        tokens = np.empty((len(lots), self.sequence + 1), dtype=np.uint32)
        for index, store in enumerate(self._stores):
            mine = chosen == index
            if mine.any():
                tokens[mine] = self._stretches(of_rows(rng, mine), int(mine.sum()), getattr(store, part))
        return tokens

    def load(self) -> BlendCorpus:
        stores = tuple(load_store(path, "data.paths") for path in self.paths)
        for path, store in zip(self.paths, stores, strict=True):
            same = store.store.record.tokenizer_sha256 == stores[0].store.record.tokenizer_sha256
            allowed = f"stores of one tokenizer; that of {path!r} is another than that of {self.paths[0]!r}"
            require(same, "data.paths", list(self.paths), allowed)
            same = store.end_of_document == stores[0].end_of_document
            allowed = f"stores whose documents end alike (end_of_document); {path!r} differs from {self.paths[0]!r}"
            require(same, "data.paths", list(self.paths), allowed)
        largest = stores[self.shares.index(max(self.shares))]
        pairs, weighted = zip(self.paths, stores, strict=True), list(zip(self.shares, stores, strict=True))
        contents = {f"{path}/{name}": sha256 for path, one in pairs for name, sha256 in one.contents.items()}
        return BlendCorpus(
            source=", ".join(f"{share:.3g} of {path}" for path, share in zip(self.paths, self.shares, strict=True)),
            paths=tuple(self.paths),
            files=len(contents),
            train=largest.train,
            validation=largest.validation,
            contents=contents,
            symbols=largest.symbols,
            bytes_per_token=sum(share * one.bytes_per_token for share, one in weighted),
            train_bytes_per_token=sum(share * one.train_bytes_per_token for share, one in weighted),
            tokenizer=largest.tokenizer,
            end_of_document=largest.end_of_document,
            stores=stores,
            shares=self.shares,
        )
