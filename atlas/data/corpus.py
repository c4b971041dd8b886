"""Corpora: bytes of files, split into a training and a validation part."""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas.config import ConfigError, require

FILES_TO_SPLIT = 10  # from so many files on, whole files go to validation; below, the tail of their bytes
ENCODINGS = ("bytes", "utf8")
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})


@dataclass(frozen=True)
class Corpus:
    """The two parts of a text, as bytes. `paths` are the user's patterns; empty for the standard library."""

    source: str
    paths: tuple[str, ...]
    files: int
    train: NDArray[np.uint8]
    validation: NDArray[np.uint8]

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
        }


def load_corpus(paths: Sequence[str], encoding: str, validation_share: float) -> Corpus:
    """The user's files, or the standard library where `paths` is empty."""
    listed = not isinstance(paths, str) and isinstance(paths, Sequence) and all(isinstance(p, str) for p in paths)
    require(listed, "data.paths", paths, "a list of file names or patterns, as in data.paths=[notes.txt,docs/**/*.md]")
    _require_share(validation_share)
    require(encoding in ENCODINGS, "data.encoding", encoding, f"one of {list(ENCODINGS)}")
    return _user_corpus(paths, encoding, validation_share) if paths else stdlib_corpus(validation_share)


def _require_share(validation_share: float) -> None:
    holds = isinstance(validation_share, float) and 0 < validation_share < 1
    require(holds, "data.validation_share", validation_share, "between 0 and 1, both excluded")


def stdlib_corpus(validation_share: float) -> Corpus:
    """The source text of the running Python's standard library, without its tests and installed packages."""
    _require_share(validation_share)
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {name: (root / name).read_bytes() for name in _python_files(root)}
    train, validation = split_files(files, validation_share)
    return Corpus(f"Python {platform.python_version()} standard library", (), len(files), train, validation)


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
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return frozenset(by_hash[: min(max(round(len(names) * validation_share), 1), len(names) - 1)])


def _concatenate(parts: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def _user_corpus(paths: Sequence[str], encoding: str, validation_share: float) -> Corpus:
    contents = {name: _read(name, paths, encoding) for name in _matches(paths)}
    common = os.path.commonpath([name.parent for name in contents])
    relative = {name.relative_to(common).as_posix(): content for name, content in contents.items()}
    train, validation = split_files(relative, validation_share)
    return Corpus(", ".join(paths), tuple(paths), len(relative), train, validation)


def _matches(paths: Sequence[str]) -> list[Path]:
    """Files that the patterns match. A wildcard passes over folders; a folder named in full is an error."""
    found: set[Path] = set()
    for pattern in paths:
        expanded = str(Path(pattern).expanduser())
        matches = [Path(name).absolute() for name in glob.glob(expanded, recursive=True)]  # noqa: PTH207 (absolute patterns too)
        if glob.has_magic(expanded):
            matches = [name for name in matches if not name.is_dir()]
        require(len(matches) > 0, "data.paths", list(paths), f"patterns that match files; {pattern!r} matches none")
        found.update(matches)
    return sorted(found)


def _read(name: Path, paths: Sequence[str], encoding: str) -> bytes:
    try:
        content = name.read_bytes()
        if encoding == "utf8":
            content.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"{str(name)!r} is not UTF-8 at byte {error.start} (data.encoding=bytes takes any file)"
        raise ConfigError(f"data.paths={list(paths)}: must be UTF-8 files; {reason}") from error
    except OSError as error:
        reason = f"{str(name)!r} cannot be read ({error.strerror})"
        raise ConfigError(f"data.paths={list(paths)}: must be readable files; {reason}") from error
    require(len(content) > 0, "data.paths", list(paths), f"files that are not empty; {str(name)!r} is")
    return content
