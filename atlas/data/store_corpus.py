"""Token stores as the text of a run: one, or several by weight."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from atlas.config import require
from atlas.config.path_overrides import expanded
from atlas.data.corpus import Corpus
from atlas.data.leakage import BLOCK, block_tokens
from atlas.data.store import TokenStore
from atlas.data.store_format import SPLITS, TOKENIZER_FILE, files_of
from atlas.data.symbols import Symbols
from atlas.data.tokenizer import BYTES_NAME

MOST_SHORT = 0.5  # share of the validation text


@dataclass(frozen=True, kw_only=True)
class StoreCorpus(Corpus):
    """The corpus of a store; its record says what other corpora find by reading all of their text."""

    store: TokenStore

    @cached_property
    def digest(self) -> str:
        """Of the hashes in its record: equal where all tokens and their tokenizer are."""
        record = self.store.record
        hashes = [
            one for split in SPLITS for one in (record.splits[split].tokens_sha256, record.splits[split].ends_sha256)
        ]
        return hashlib.sha256("".join([*hashes, record.tokenizer_sha256]).encode()).hexdigest()

    @cached_property
    def leakage(self) -> float:
        return self.store.record.validation_in_training

    @property
    def warnings(self) -> list[str]:
        return [*super().warnings, *short_documents(self.store)]

    def require_length(self, sequence: int) -> None:
        shorter = min(len(self.train), len(self.validation))
        part = "validation" if shorter == len(self.validation) else "training"
        allowed = f"< {shorter}, the tokens of the {part} part of {self.source}, or that part longer (validation_share)"
        require(shorter > sequence, "train.sequence", sequence, allowed)

    def describe(self) -> dict[str, str | int | float]:
        splits = self.store.record.splits
        return {
            "source": self.source,
            "documents": splits["train"].documents,
            "train_tokens": len(self.train),
            "train_bytes": splits["train"].bytes,
            "validation_tokens": len(self.validation),
            "validation_in_training": self.leakage,
        }


def short_documents(store: TokenStore) -> list[str]:
    """A line where most of the validation text is in documents too short for a block of `shared_blocks`."""
    short = store.validation.short_share(block_tokens(store.record.bytes_per_token))
    what = f"{short:.0%} of the validation text stands in documents of less than {BLOCK} bytes"
    told = f"{what}: whether they stand in training as well, but for a change, is not known"
    return [told] if short > MOST_SHORT else []


def load_store(path: str, key: str) -> StoreCorpus:
    """The store in a folder. Raises `ConfigError` naming `key`."""
    store = TokenStore(Path.cwd() / expanded(path), key)
    record = store.record
    train, validation = record.splits["train"], record.splits["validation"]
    hashes = [
        (name, sha256[:16])
        for split in SPLITS
        for name, sha256 in zip(
            files_of(split), (record.splits[split].tokens_sha256, record.splits[split].ends_sha256), strict=True
        )
    ]
    return StoreCorpus(
        source=f"token store {path}",
        paths=(path,),
        files=len(hashes),
        train=store.train.tokens,
        validation=store.validation.tokens,
        contents=dict(hashes),
        symbols=Symbols.from_record(record.symbols),
        bytes_per_token=validation.bytes / validation.tokens,
        train_bytes_per_token=train.bytes / train.tokens,
        tokenizer=None if record.tokenizer == BYTES_NAME else store.folder / TOKENIZER_FILE,
        end_of_document=record.end_of_document,
        store=store,
    )
