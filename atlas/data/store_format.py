"""The files of a token store, which `python -m atlas.prepare` writes and training maps into memory.

store.json              what it holds: sizes, hashes, tokenizer, sources
tokenizer.json          as the `tokenizers` library writes it; not for bytes
train.tokens            little-endian ids of documents one after the other, each ended by the end-of-document id
train.ends              int64: the token after each document
validation.tokens ...   the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from atlas.config import ConfigError, require
from atlas.config.untrusted import read_json
from atlas.data.symbols import Symbols

FORMAT = 1
STORE_FILE, TOKENIZER_FILE = "store.json", "tokenizer.json"
SPLITS = ("train", "validation")
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
ENDS = np.dtype("<i8")


@dataclass(frozen=True)
class SplitRecord:
    """Sizes and hashes of a split. `bytes`: of the text, without ends of documents."""

    tokens: int
    documents: int
    bytes: int
    tokens_sha256: str
    ends_sha256: str


@dataclass(frozen=True)
class StoreRecord:
    """The content of store.json."""

    dtype: str
    vocabulary: int
    end_of_document: int
    tokenizer: str  # "bytes", or where it came from
    tokenizer_sha256: str
    symbols: Mapping[str, Any]  # the ids of needles and haystacks, see `Symbols`
    splits: Mapping[str, SplitRecord]
    duplicates: int  # documents that equal an earlier one; all copies are in one split
    validation_in_training: float  # share of the blocks of validation that stand in training as well
    skipped: Sequence[str]  # documents left out with on_error=skip, the first of them in words
    skipped_count: int
    empty: int  # documents without text, which are left out
    sources: Sequence[str]
    settings: Mapping[str, Any]
    format: int = FORMAT
    lost_characters: float | None = None  # share that the tokenizer does not give back, of a sample; None: not measured

    @property
    def bytes_per_token(self) -> float:
        """Of text, an end of a document counted as a token."""
        return sum(one.bytes for one in self.splits.values()) / sum(one.tokens for one in self.splits.values())


def files_of(split: str) -> tuple[str, str]:
    return f"{split}.tokens", f"{split}.ends"


def read_record(folder: Path, key: str) -> StoreRecord:
    """The record of the store in `folder`. Raises `ConfigError` naming `key` for what is no store, or a newer one."""
    command = "a folder that python -m atlas.prepare has made"
    try:
        found = read_json(folder / STORE_FILE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{key}={folder}: must be {command} ({STORE_FILE}: {reason})") from error
    version = found.get("format") if isinstance(found, dict) else None
    require(version == FORMAT, key, folder, f"{command}; its format is {version}, this version reads {FORMAT}")
    try:
        known = {one.name for one in fields(StoreRecord)}
        splits = {split: SplitRecord(**found["splits"][split]) for split in SPLITS}
        record = StoreRecord(**{**{name: value for name, value in found.items() if name in known}, "splits": splits})
        _require_sound(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{key}={folder}: must be {command} ({STORE_FILE} is damaged: {error})") from error
    return record


def _require_sound(record: StoreRecord) -> None:
    """Raise ValueError for values that no preparation writes; a store may come from somebody else."""
    if record.dtype not in DTYPES:
        raise ValueError(f"dtype {record.dtype!r}")
    whole = (record.vocabulary, record.end_of_document)
    if not all(type(number) is int for number in whole) or not 0 <= record.end_of_document < record.vocabulary:
        raise ValueError(f"end_of_document {record.end_of_document!r} of vocabulary {record.vocabulary!r}")
    if record.vocabulary > 1 << 8 * DTYPES[record.dtype].itemsize:
        raise ValueError(f"vocabulary {record.vocabulary} in {record.dtype}")
    if record.lost_characters is not None and not 0 <= record.lost_characters <= 1:
        raise ValueError(f"lost_characters {record.lost_characters!r}")
    if Symbols.from_record(record.symbols).vocabulary != record.vocabulary:
        raise ValueError("symbols of another vocabulary")
    for split in record.splits.values():
        counts = (split.tokens, split.documents, split.bytes)
        if not all(type(number) is int and number > 0 for number in counts):
            raise ValueError(f"counts {counts}")
