"""Corpora: bytes of files, split into a training and a validation part."""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from atlas.config import require
from atlas.config.values import within
from atlas.data.files import read_files
from atlas.data.leakage import BLOCK, shared_blocks
from atlas.data.needles import Tokens
from atlas.data.symbols import BYTE_SYMBOLS, Symbols

FILES_TO_SPLIT = 10  # from this many files on, whole files are for validation; below, the tail of all bytes
Encoding = Literal["bytes", "utf8"]
ValidationShare = Annotated[float, within("(0, 1)")]  # of the bytes
ENCODINGS = get_args(Encoding)
LEAKAGE = 0.01  # share of validation blocks that are also in training; above it a warning is given
FOREIGN = 0.1  # share of the validation ids; above it a warning is given
UNSEEN = 0.005  # the same of bytes that training does not have at all; rare words of a tokenizer are many
FOREIGN_TIMES = 10  # times as frequent as in training
COUNTED, STRETCHES = 1 << 20, 256  # ids of each part that are counted, and stretches that ids are taken from
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
    | {"encodings"}  # generated tables, many nearly alike: a tenth of the validation blocks stood in training
)


@dataclass(frozen=True)
class Corpus:
    """The two parts of a text, as ids. `paths` are the user's patterns; empty for the standard library."""

    source: str
    paths: tuple[str, ...]
    files: int
    train: Tokens
    validation: Tokens
    contents: Mapping[str, str] = field(default_factory=dict)  # file -> SHA-256, its first 16 digits
    notes: tuple[str, ...] = ()  # what was passed over when the files were read
    symbols: Symbols = BYTE_SYMBOLS  # the ids of needles and haystacks in this text's vocabulary
    bytes_per_token: float = 1.0  # of the validation part
    train_bytes_per_token: float = 1.0
    tokenizer: Path | None = None  # the tokenizer.json of the ids; None where they are bytes
    end_of_document: int | None = None  # its id; None where documents do not end

    @cached_property
    def digest(self) -> str:
        """SHA-256 of both parts: equal where every batch is."""
        parts = [hashlib.sha256(part.data).hexdigest() for part in (self.train, self.validation)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @cached_property
    def leakage(self) -> float:
        """The share of the validation blocks that are also in training, see `shared_blocks`."""
        return round(shared_blocks(self.train, self.validation)[0], 4)

    @cached_property
    def foreign(self) -> float:
        """The share of the validation ids that are a tenth as frequent in training, or less."""
        training, validation = self._frequencies
        rare = training * FOREIGN_TIMES <= validation
        return round(float(validation[rare].sum()), 4)

    @cached_property
    def unseen(self) -> float:
        """The share of the validation ids that training never has."""
        training, validation = self._frequencies
        return round(float(validation[training == 0].sum()), 4)

    @cached_property
    def _frequencies(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each id, in training and in validation."""
        size = int(self.symbols.vocabulary)
        train = [share * frequencies(one.train, size) for one, share in self.sources]
        validation = [share * frequencies(one.validation, size) for one, share in self.sources]
        return np.sum(train, axis=0), np.sum(validation, axis=0)

    @property
    def sources(self) -> Sequence[tuple[Corpus, float]]:
        """The texts that rows are taken from, each with its share of them."""
        return [(self, 1.0)]

    @property
    def warnings(self) -> list[str]:
        """What a user should know before training on it."""
        found = list(self.notes)
        if self.leakage > LEAKAGE:
            found.append(
                f"{self.leakage:.1%} of the validation blocks ({BLOCK} bytes) stand in the training part as well:"
                " the validation loss is lower than on new text"
            )
        if self.tokenizer is None and self.unseen > UNSEEN:
            found.append(
                f"{self.unseen:.1%} of the validation bytes never occur in training: the two parts differ in how they"
                " were read or cleaned"
            )
        if self.foreign > FOREIGN:
            found.append(
                f"{self.foreign:.1%} of the validation ids are less than a tenth as frequent in training: the two "
                "parts differ in language, subject or encoding; the validation loss says little about what was learned"
            )
        return found

    def require_length(self, sequence: int) -> None:
        """Refuse a corpus with a part shorter than one sequence and the target of its last token."""
        shorter = min(len(self.train), len(self.validation))
        if self.paths:
            allowed = (
                f"files with more than train.sequence={sequence} bytes for training and as many for validation;"
                f" they have {len(self.train)} and {len(self.validation)} (see data.validation_share)"
            )
            require(shorter > sequence, "data.paths", list(self.paths), allowed)
        allowed = f"< {shorter}, the bytes of the shorter of the two parts of the {self.source}"
        require(shorter > sequence, "train.sequence", sequence, allowed)

    def describe(self) -> dict[str, str | int | float]:
        return {
            "source": self.source,
            "files": self.files,
            "train_bytes": len(self.train),
            "validation_bytes": len(self.validation),
            "validation_in_training": self.leakage,
        }


def frequencies(part: Tokens, size: int) -> NDArray[np.float64]:
    """Of each of `size` ids, in COUNTED ids from all over a part."""
    counts = np.bincount(spread(part, COUNTED), minlength=size)
    return np.asarray(counts / max(int(counts.sum()), 1), dtype=np.float64)


def spread(part: Tokens, count: int) -> Tokens:
    """At most `count` ids of a part, in stretches from all over it, whose ends may be of another kind."""
    if len(part) <= count:
        return part
    length = max(count // STRETCHES, 1)
    starts = np.linspace(0, len(part) - length, count // length).astype(np.int64)
    return np.concatenate([part[start : start + length] for start in starts])


def load_corpus(paths: Sequence[str], encoding: str, validation_share: float) -> Corpus:
    """The user's files, or the standard library where `paths` is empty."""
    listed = not isinstance(paths, str) and isinstance(paths, Sequence) and all(isinstance(p, str) for p in paths)
    require(listed, "data.paths", paths, "a list of file names or patterns, as in data.paths=[notes.txt,**/*.md]")
    _require_share(validation_share)
    require(encoding in ENCODINGS, "data.encoding", encoding, f"one of {list(ENCODINGS)}")
    return _user_corpus(paths, encoding, validation_share) if paths else stdlib_corpus(validation_share)


def _require_share(validation_share: float) -> None:
    holds = isinstance(validation_share, float) and 0 < validation_share < 1
    require(holds, "data.validation_share", validation_share, "between 0 and 1, both excluded")


def stdlib_corpus(validation_share: float) -> Corpus:
    """The source text of the running Python's standard library, without its tests, `encodings` and installed
    packages."""
    _require_share(validation_share)
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {name: (root / name).read_bytes() for name in _python_files(root)}
    train, validation = split_files(files, validation_share)
    source = f"Python {platform.python_version()} standard library"
    return Corpus(source, (), len(files), train, validation, _hashes(files))


def _python_files(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        found += [Path(folder, name).relative_to(root).as_posix() for name in files if name.endswith(".py")]
    return sorted(found)


def split_files(files: dict[str, bytes], validation_share: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bytes for training and for validation, from files by relative path.

    Whole files, in path order: the `validation_share` of them whose path has the smallest SHA-256 is for validation.
    With fewer than `FILES_TO_SPLIT` files, the tail of all their bytes is.
    """
    names = sorted(files)
    if len(names) < FILES_TO_SPLIT:
        whole = _concatenate([files[name] for name in names])
        cut = len(whole) - round(len(whole) * validation_share)
        return whole[:cut], whole[cut:]
    held_out = validation_files(names, validation_share)
    train = _concatenate([files[name] for name in names if name not in held_out])
    return train, _concatenate([files[name] for name in names if name in held_out])


def validation_files(names: Sequence[str], validation_share: float) -> frozenset[str]:
    """The files of the validation part: at least one, and not all."""
    by_hash = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    return frozenset(by_hash[: min(max(round(len(names) * validation_share), 1), len(names) - 1)])


def _concatenate(parts: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def _user_corpus(paths: Sequence[str], encoding: str, validation_share: float) -> Corpus:
    texts, notes = read_files(paths, encoding, "data.encoding=bytes takes text of any encoding")
    common = os.path.commonpath([name.parent for name in texts])
    files = {name.relative_to(common).as_posix(): content for name, content in texts.items()}
    train, validation = split_files(files, validation_share)
    return Corpus(", ".join(paths), tuple(paths), len(files), train, validation, _hashes(files), tuple(notes))


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hash_of_file(content) for name, content in files.items()}


def hash_of_file(content: bytes) -> str:
    """As data.json has it."""
    return hashlib.sha256(content).hexdigest()[:16]
