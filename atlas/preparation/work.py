"""The folder of unfinished work, DIR.partial: what was asked for, the finished units, and the store as far as it is.

plan.json               settings, sources with size and time, the size of a unit, and what all units must share: the
                        bound of validation (`split.py`) and the tokenizer
tokenizer.json          the tokenizer in use; trained-HASH.json for one trained on these sources
units/00000.json        a finished unit, with 00000.hashes and, until the store has taken it, 00000.part
store/                  what becomes DIR
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atlas.config import ConfigError
from atlas.config.atomic import write_atomically
from atlas.config.untrusted import read_json
from atlas.data.store import sha256_of
from atlas.data.store_format import DTYPES, ENDS, SPLITS, files_of
from atlas.preparation.sources import Source
from atlas.preparation.worker import UnitRecord, read_unit

PLAN_FILE = "plan.json"
MOST_PLAN_BYTES = 1 << 30
SYNC_BYTES = 32 << 20  # that may wait for the disk: waiting for it costs as much as tokenising a megabyte


@dataclass
class Work:
    """The folder at `root`, and the finished units in it by number. The first `taken` ones are in the store's files."""

    root: Path
    unit_bytes: int
    dtype: str
    done: dict[int, UnitRecord]
    taken: int = 0
    _waiting: list[Path] = field(default_factory=list)  # parts that the store has taken, but may not be on the disk

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def units(self) -> Path:
        return self.root / "units"

    @property
    def contiguous(self) -> int:
        """How many units from the first on are finished."""
        count = 0
        while count in self.done:
            count += 1
        return count

    def part(self, index: int) -> Path:
        return self.units / f"{index:05d}.part"

    def total(self, split: str, what: str) -> int:
        """`tokens`, `documents` or `bytes` of the units that the store has taken."""
        return sum(getattr(self.done[index].parts[split], what) for index in range(self.taken))

    def take(self) -> None:
        """Append the finished units to the store's files, in their order.

        Their parts are removed when the files are on the disk. A kill before leaves files that are too long, see `cut`.
        """
        while self.taken in self.done:
            path, record = self.part(self.taken), self.done[self.taken]
            with path.open("rb") as part:
                for split in SPLITS:
                    count = record.parts[split]
                    tokens, ends = (self.store / name for name in files_of(split))
                    _append(tokens, part.read(count.tokens * DTYPES[self.dtype].itemsize))
                    last = np.frombuffer(part.read(count.documents * ENDS.itemsize), dtype=ENDS)
                    before = self.total(split, "tokens")
                    _append(ends, (last + before).astype(ENDS).tobytes())
            self._waiting.append(path)
            self.taken += 1
            if sum(path.stat().st_size for path in self._waiting) >= SYNC_BYTES:
                self.sync()

    def sync(self) -> None:
        """Bring what the store has taken to the disk, and remove the parts that it came from."""
        for split in SPLITS:
            for name in files_of(split):
                with (self.store / name).open("rb") as file:
                    os.fsync(file.fileno())
        for path in self._waiting:
            path.unlink()
        self._waiting.clear()

    def cut(self) -> bool:
        """Cut the store's files to the units that they have taken. False where they are shorter than that."""
        for split in SPLITS:
            sizes = (DTYPES[self.dtype].itemsize, ENDS.itemsize)
            for name, what, size in zip(files_of(split), ("tokens", "documents"), sizes, strict=True):
                path, length = self.store / name, self.total(split, what) * size
                path.touch()
                if path.stat().st_size < length:
                    return False
                os.truncate(path, length)
        return True


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def open_work(
    root: Path,
    asked: Mapping[str, Any],
    sources: Sequence[Source],
    unit_bytes: int,
    dtype: str,
    fixed: Mapping[str, Any],
    *,
    skip: bool,
) -> Work:
    """The work in `root`, with what an earlier start has finished of it.

    A source that changed, came or went makes the units from it on unfinished, and all of them where it changes what is
    `fixed`: the bound between training and validation, or a tokenizer trained on the sources. Without `skip` units that
    have left out documents are unfinished too: their documents are refused now. Raises `ConfigError` where the plan
    cannot be read; whether it has the same settings, `require_same` has seen.
    """
    before = read_plan(root)
    listed = [list(astuple(source)) for source in sources]
    work = Work(root, unit_bytes, dtype, {})
    for folder in (work.store, work.units):
        folder.mkdir(parents=True, exist_ok=True)
    if before is not None:
        work.unit_bytes = before["unit_bytes"]
        same = all(before.get(key) == value for key, value in fixed.items())
        finished = _finished(work, _equal_sources(before["sources"], listed)) if same else {}
        work.done = {index: record for index, record in finished.items() if skip or not record.skipped_count}
        while work.taken in work.done and not work.part(work.taken).exists():
            work.taken += 1
    # The store is cut at the first unit that is made again; the parts of those behind it may be gone.
    work.done = {
        index: record for index, record in work.done.items() if index < work.taken or work.part(index).exists()
    }
    if not work.cut():
        work.done, work.taken = {}, 0
        work.cut()
    _remove_others(work)
    plan = {
        "asked": dict(asked),
        "unit_bytes": work.unit_bytes,
        **fixed,
        "sources": listed,
    }
    write_atomically(root / PLAN_FILE, json.dumps(plan, indent=0), durable=True)
    return work


def read_plan(root: Path) -> dict[str, Any] | None:
    """What the unfinished work in `root` began with. Raises `ConfigError`."""
    path = root / PLAN_FILE
    try:
        found = read_json(path, MOST_PLAN_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"out: {path} must be readable, or {path.parent} removed ({error})") from error
    return found if isinstance(found, dict) else None


def require_same(root: Path, asked: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where the unfinished work in `root` began with other settings."""
    before = read_plan(root)
    if before is None:
        return
    known = before.get("asked", {})
    for key, value in asked.items():
        if known.get(key) != value:
            allowed = f"{known.get(key)}, with which the unfinished work in {root} began; or remove that folder"
            raise ConfigError(f"{key}={value}: must be {allowed}")


def _equal_sources(before: Sequence[Any], now: Sequence[Any]) -> int | None:
    """How many sources from the first on are what they were; None where all are."""
    if list(before) == list(now):
        return None
    pairs = zip(before, now, strict=False)
    return next((index for index, (old, new) in enumerate(pairs) if old != new), min(len(before), len(now)))


def _finished(work: Work, equal: int | None) -> dict[int, UnitRecord]:
    """The finished units, without those that reach into a source that changed."""
    done = {}
    for path in work.units.glob("*.json"):
        try:
            record = read_unit(path)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        unchanged = equal is None or record.end[0] < equal - 1
        if unchanged and _is_whole(work, record):
            done[record.index] = record
    return done


def _is_whole(work: Work, record: UnitRecord) -> bool:
    """Whether the files of a unit hold what was written, which a power cut may have kept from the disk."""
    part, hashes = work.part(record.index), work.units / f"{record.index:05d}.hashes"
    whole = hashes.is_file() and sha256_of(hashes) == record.hashes_sha256
    return whole and (not part.exists() or sha256_of(part) == record.part_sha256)


def _remove_others(work: Work) -> None:
    """Remove what does not belong to a finished unit."""
    for path in work.units.iterdir():
        if not path.stem.isdecimal() or int(path.stem) not in work.done:
            path.unlink()


def remove_work(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
