"""A token store, mapped into memory: reading takes no memory that grows with it."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas.config import ConfigError
from atlas.data.store_format import DTYPES, ENDS, SPLITS, TOKENIZER_FILE, files_of, read_record
from atlas.data.tokenizer import BYTES_NAME, ByteTokenizer, LibraryTokenizer, Tokenizer


@dataclass(frozen=True)
class StoreSplit:
    """The tokens of training or validation, and where each document ends; both are mapped files."""

    tokens: NDArray[np.unsignedinteger[Any]]
    ends: NDArray[np.int64]

    def document(self, number: int) -> NDArray[np.unsignedinteger[Any]]:
        """The tokens of a document, its end included."""
        return self.tokens[self.ends[number - 1] if number else 0 : self.ends[number]]

    def short_share(self, length: int) -> float:
        """The share of its tokens that stand in documents of less than `length` tokens."""
        lengths = np.diff(self.ends, prepend=0)
        return float(lengths[lengths < length].sum() / max(len(self.tokens), 1))

    def release(self) -> None:
        """Take the pages that were read out of this process's memory; the system keeps them as long as it has room."""
        for array in (self.tokens, self.ends):
            mapped = getattr(array, "_mmap", None)
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


class TokenStore:
    """The store in a folder. Raises `ConfigError` naming `key` for what is no store, or whose files are cut short."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key, self.record = folder, key, read_record(folder, key)
        self.train, self.validation = (self._mapped(split) for split in SPLITS)

    def release(self) -> None:
        for split in (self.train, self.validation):
            split.release()

    def tokenizer(self) -> Tokenizer:
        """Raises `ConfigError` where it is not that of the store."""
        if self.record.tokenizer == BYTES_NAME:
            return ByteTokenizer()
        path = self.folder / TOKENIZER_FILE
        tokenizer = LibraryTokenizer(path, str(self.record.settings.get("end_of_document", "")), self.key)
        if (tokenizer.sha256, tokenizer.vocabulary) != (self.record.tokenizer_sha256, self.record.vocabulary):
            allowed = f"the tokenizer that the store was made with; {path} is another one"
            raise ConfigError(f"{self.key}={self.folder}: must hold {allowed}")
        return tokenizer

    def verify(self) -> None:
        """Read all files and compare their hashes. Raises `ConfigError` for the first that differs."""
        for split, record in self.record.splits.items():
            for name, wanted in zip(files_of(split), (record.tokens_sha256, record.ends_sha256), strict=True):
                if sha256_of(self.folder / name) != wanted:
                    raise self._damaged(name, "its content is not what was written")
        self.tokenizer()

    def _mapped(self, split: str) -> StoreSplit:
        record, dtype = self.record.splits[split], DTYPES[self.record.dtype]
        tokens, ends = files_of(split)
        self._require_size(tokens, record.tokens * dtype.itemsize)
        self._require_size(ends, record.documents * ENDS.itemsize)
        return StoreSplit(
            np.memmap(self.folder / tokens, dtype=dtype, mode="r"), np.memmap(self.folder / ends, dtype=ENDS, mode="r")
        )

    def _require_size(self, name: str, size: int) -> None:
        path = self.folder / name
        try:
            found = path.stat().st_size if path.is_file() else -1
        except OSError as error:
            raise self._damaged(name, error.strerror or str(error)) from error
        if found != size:
            raise self._damaged(name, f"it has {found} of {size} bytes" if found >= 0 else "it is missing")

    def _damaged(self, name: str, reason: str) -> ConfigError:
        return ConfigError(f"{self.key}={self.folder}: must be a whole store; {name}: {reason}")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
