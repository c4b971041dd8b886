"""Finding the files that patterns name, and reading those that are text."""

from __future__ import annotations

import codecs
import fnmatch
import glob
import hashlib
import os
import stat
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from atlas.config import ConfigError, require
from atlas.config.path_overrides import expanded

# Compressed files that may hold no NUL byte near their start; others (gzip, xz, zip) are known by one.
COMPRESSED = {
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
}
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32 begins like the first one, or with a NUL byte
RUN_FILES, SWEEP_FILE = frozenset(("config.yaml", "metrics.jsonl")), "sweep.json"  # by which their folders are known
HEAD_BYTES = 8192  # a NUL byte among these means binary, as in git


def read_files(paths: Sequence[str], encoding: str, why_utf8: str = "") -> tuple[dict[Path, bytes], list[str]]:
    """The texts that `paths` name, in path order, equal ones once; and a line on the files that were skipped.

    A file that is no text is skipped if a pattern found it. Raises `ConfigError` if it was named in full, or if no
    text is left, or with the encoding "utf8" for another one: `why_utf8` follows.
    """
    found, named = find_files(paths, "data.paths")
    texts: dict[Path, bytes] = {}
    first_of: dict[bytes, Path] = {}  # by the SHA-256 of the content
    no_texts: list[str] = []
    copies: list[str] = []
    for name in sorted(found):
        content, fault = _read(name, paths)
        if fault:
            require(name not in named, "data.paths", list(paths), f"files of text; {str(name)!r} {fault}")
            no_texts.append(f"{str(name)!r} {fault}")
            continue
        first = first_of.setdefault(hashlib.sha256(content).digest(), name)
        if first != name:
            copies.append(f"{str(name)!r} equals {str(first)!r}")
            continue
        if encoding == "utf8":
            _require_utf8(content, name, paths, why_utf8)
        texts[name] = content
    if not texts:
        reason = f"all {len(no_texts)} files found are none; the first: {no_texts[0]}"
        raise ConfigError(f"data.paths={list(paths)}: must match files of text; {reason}")
    notes = []
    if no_texts:
        notes.append(f"data.paths: {_files(no_texts)} passed over, as no text; the first: {no_texts[0]}")
    if copies:
        notes.append(f"data.paths: {_files(copies)} left out whose content is read already; the first: {copies[0]}")
    return texts, notes


def absolute(pattern: str) -> Path:
    """The pattern as an absolute path, `~` replaced."""
    return Path.cwd() / expanded(pattern)


def _files(listed: Sequence[str]) -> str:
    return f"{len(listed)} file{'s' if len(listed) > 1 else ''}"


def find_files(paths: Sequence[str], key: str) -> tuple[set[Path], set[Path]]:
    """The files that `paths` name, and those named in full. A folder stands for all files in it.

    A pattern does not enter the folders of runs and sweeps, whose reports are text too; a name does.
    Raises `ConfigError` naming `key` for a pattern without a match.
    """
    found: set[Path] = set()
    named: set[Path] = set()
    for pattern in paths:
        wanted = absolute(pattern)
        if os.path.lexists(wanted) and not wanted.is_dir():
            named.add(wanted)
            continue
        parts = [*wanted.parts[1:], *(["**"] if wanted.is_dir() else [])]
        runs: set[Path] = set()
        matches = {name for name in _expand(Path(wanted.anchor), parts, runs) if not name.is_dir()}
        outside = f" outside of the folders of runs, such as {str(min(runs))!r}" if runs else ""
        require(len(matches) > 0, key, list(paths), f"patterns that match files; {pattern!r} matches none{outside}")
        found |= matches
    return found | named, named


def _expand(base: Path, parts: Sequence[str], runs: set[Path]) -> Iterator[Path]:
    """What the pattern `parts` matches below `base`, as `glob` has it, with three differences.

    A name that exists is no pattern, whatever characters it holds. `**` enters a folder once, however many links lead
    to it: `glob` never comes back from two links to ".". Folders of runs that only a pattern names are added to `runs`.
    """
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for folder in _folders(base, runs):
            yield from _expand(folder, rest or ["*"], runs)
    elif not glob.has_magic(part) or os.path.lexists(base / part):
        if os.path.lexists(base / part):
            yield from _expand(base / part, rest, runs)
    else:
        for name in _names(base):
            if not fnmatch.fnmatch(name, part) or (name.startswith(".") and not part.startswith(".")):
                continue
            if rest and _is_run(_names(base / name)):
                runs.add(base / name)
            else:
                yield from _expand(base / name, rest, runs)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:  # a file, or a folder without permission to read
        return []


def _is_run(names: Collection[str]) -> bool:
    """Whether a folder with these files is that of a run or sweep."""
    return SWEEP_FILE in names or RUN_FILES.issubset(names)


def _folders(root: Path, runs: set[Path]) -> Iterator[Path]:
    """`root` and the folders below it, hidden ones and `runs` left out; those behind links come last."""
    entered = set()
    waiting = deque([root])
    while waiting:
        for folder, names, files in os.walk(waiting.popleft()):
            if Path(folder) != root and _is_run(files):
                runs.add(Path(folder))
                names.clear()
                continue
            status = Path(folder).stat()
            names[:] = sorted(name for name in names if not name.startswith("."))
            if (status.st_dev, status.st_ino) in entered:
                names.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            waiting.extend(Path(folder, name) for name in names if Path(folder, name).is_symlink())
            yield Path(folder)


def _read(name: Path, paths: Sequence[str]) -> tuple[bytes, str]:
    """The content, or why it is no text. Raises `ConfigError` for a file that cannot be read."""
    try:
        if not stat.S_ISREG(name.stat().st_mode):  # a pipe would never end
            return b"", "is no regular file"
        content = name.read_bytes()
    except OSError as error:
        if name.is_symlink() and not name.exists():
            return b"", "is a link to nothing"
        reason = f"{str(name)!r} cannot be read ({error.strerror})"
        raise ConfigError(f"data.paths={list(paths)}: must be readable files; {reason}") from error
    return content, fault_of_text(content)


def fault_of_text(content: bytes) -> str:
    """Why bytes that begin so are no text; "" where they may be."""
    if not content:
        return "is empty"
    for magic, kind in COMPRESSED.items():
        if content.startswith(magic):
            return f"is compressed ({kind})"
    if content.startswith(WIDE):
        return "is UTF-16; convert it to UTF-8"
    return "holds NUL bytes" if b"\0" in content[:HEAD_BYTES] else ""


def _require_utf8(content: bytes, name: Path, paths: Sequence[str], why: str) -> None:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"{str(name)!r} is not UTF-8 at byte {error.start} ({why})"
        raise ConfigError(f"data.paths={list(paths)}: must be UTF-8 files; {reason}") from error
