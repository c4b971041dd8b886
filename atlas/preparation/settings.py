"""Settings of a preparation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from atlas.config import require
from atlas.config.choices import Choices
from atlas.config.cores import usable_cores
from atlas.config.path_overrides import expanded
from atlas.data.tokenizer import BYTES_NAME

MOST_WORKERS = 1024
LEAST_VOCABULARY = 257  # of a trained tokenizer: the bytes and the end of a document
MOST_VOCABULARY = 1 << 20
_TRAINED = re.compile(r"train:(\d+)")


class Format(StrEnum):
    auto = "auto"  # by the end of the file's name
    text = "text"
    jsonl = "jsonl"
    parquet = "parquet"


class OnError(StrEnum):
    refuse = "refuse"
    skip = "skip"  # the document is left out and counted


@dataclass
class PrepareSettings(Choices):
    """What the command line may set; see the docstring of `atlas/prepare.py`."""

    sources: Sequence[str]
    out: str = ""
    tokenizer: str = BYTES_NAME
    end_of_document: str = ""
    field: str = "text"
    format: Format = Format.auto
    separator: str = ""
    split: str = "train"
    validation_share: float = 0.01
    on_error: OnError = OnError.refuse
    workers: int = 0

    def __post_init__(self) -> None:
        usage = "at least one file, pattern or folder: python -m atlas.prepare SOURCE... out=DIR"
        require(len(self.sources) > 0, "SOURCE", "", usage)
        named_out = bool(self.out.strip() and self.folder.name)  # "/" has no name
        require(named_out, "out", self.out, "the folder of the new store, such as out=stores/mine")
        require(0 < self.validation_share < 1, "validation_share", self.validation_share, "in (0, 1)")
        allowed = f"in [0, {MOST_WORKERS}] (0 = one per core)"
        require(0 <= self.workers <= MOST_WORKERS, "workers", self.workers, allowed)
        require(bool(self.field), "field", self.field, "the name of a field or column")
        size = self.trained_vocabulary
        allowed = f"train:N with N in [{LEAST_VOCABULARY}, {MOST_VOCABULARY}]"
        require(size is None or LEAST_VOCABULARY <= size <= MOST_VOCABULARY, "tokenizer", self.tokenizer, allowed)
        named = self.trained_vocabulary is None and self.tokenizer != BYTES_NAME
        end = self.end_of_document
        require(named or not end, "end_of_document", end, "left out: only a tokenizer.json leaves a choice")

    @property
    def folder(self) -> Path:
        return Path.cwd() / expanded(self.out)

    @property
    def partial(self) -> Path:
        """The folder of unfinished work."""
        return self.folder.with_name(f"{self.folder.name}.partial")

    @property
    def trained_vocabulary(self) -> int | None:
        """N of `tokenizer=train:N`."""
        found = _TRAINED.fullmatch(self.tokenizer)
        return int(found[1]) if found else None

    @property
    def processes(self) -> int:
        return self.workers or usable_cores()

    @property
    def cut(self) -> bytes:
        r"""The separator as it stands in a file; `\n` and `\t` are written so on a command line."""
        return self.separator.replace("\\n", "\n").replace("\\t", "\t").encode("utf-8", "surrogateescape")

    def shaping(self) -> dict[str, Any]:
        """The settings that the content of the store depends on, besides its sources and its tokenizer."""
        others = ("sources", "out", "workers", "on_error", "tokenizer")
        return {key: str(value) for key, value in asdict(self).items() if key not in others}
