"""One worker: a unit of documents -> its part of the store. Runs in a process of its own.

00012.part holds the unit's tokens and ends for training, then those for validation, as they stand in a store, ends
counted from the unit's own start; 00012.hashes a hash of each document; 00012.json, the last of the three, the record.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas.config.atomic import write_atomically
from atlas.config.untrusted import parse_json
from atlas.data.store_format import DTYPES, ENDS, SPLITS
from atlas.data.tokenizer import BYTES_NAME, ByteTokenizer, LibraryTokenizer, Tokenizer
from atlas.preparation.documents import holds_end, is_blank, place_of, text_of
from atlas.preparation.lost_characters import count_lost
from atlas.preparation.sources import Kind
from atlas.preparation.split import hash_of
from atlas.preparation.units import Unit

BATCH_BYTES = 1 << 20  # of text that is tokenised in one call
SHOWN = 3  # documents left out that a unit names


@dataclass(frozen=True)
class Job:
    """What every unit of a preparation has in common."""

    units: str  # folder of the parts and their records
    names: Sequence[str]  # of the sources
    kinds: Sequence[str]
    field: str
    tokenizer: str  # bytes, or the path of a tokenizer.json
    end_of_document: str
    dtype: str
    validation_below: float  # the hashes of documents for validation, see `split.py`
    skip: bool  # documents that cannot be read


@dataclass(frozen=True)
class PartRecord:
    """What a unit adds to a split."""

    tokens: int
    documents: int
    bytes: int  # of text


@dataclass
class UnitRecord:
    """What a unit came to; the file that holds it says that the unit is complete."""

    index: int
    end: tuple[int, int]  # of its last document, see `Place`
    read: float
    parts: dict[str, PartRecord] = field(default_factory=dict)
    part_sha256: str = ""
    hashes_sha256: str = ""
    skipped: list[str] = field(default_factory=list)  # the first ones
    skipped_count: int = 0
    empty: int = 0
    lost: int = 0  # characters that the tokenizer does not give back, of
    looked_at: int = 0

    def note_skipped(self, place: str) -> None:
        self.skipped_count += 1
        if len(self.skipped) < SHOWN:
            self.skipped.append(place)


class DocumentError(Exception):
    """A document that cannot be used; the message is shown to the user."""


def load_tokenizer(name: str, end: str) -> Tokenizer:
    """Raises `ConfigError`."""
    return ByteTokenizer() if name == BYTES_NAME else LibraryTokenizer(Path(name), end)


class Worker:
    """Makes the parts of units. A kill leaves no part that looks complete."""

    def __init__(self, job: Job) -> None:
        self.job, self.tokenizer = job, load_tokenizer(job.tokenizer, job.end_of_document)

    def write(self, unit: Unit) -> UnitRecord:
        """The record of the unit, written after its parts. Raises `DocumentError`, and OSError for a full disk."""
        record = UnitRecord(unit.index, (unit.end.source, unit.end.documents), unit.read)
        for place in unit.skipped:
            record.note_skipped(place)
        ids: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
        sizes = dict.fromkeys(SPLITS, 0)
        hashes = []
        for batch, encoded in self._encoded(unit, record):
            if self.job.tokenizer != BYTES_NAME:
                lost, looked_at = count_lost(self.tokenizer, batch)
                record.lost, record.looked_at = record.lost + lost, record.looked_at + looked_at
            for text, tokens in zip(batch, encoded, strict=True):
                number = hash_of(text)
                hashes.append(number)
                split = SPLITS[number < self.job.validation_below]
                ids[split].append(tokens)
                sizes[split] += len(text)
        content = []
        for split in SPLITS:
            record.parts[split], arrays = self._joined(ids[split], sizes[split])
            content += [array.tobytes() for array in arrays]
        folder = Path(self.job.units)
        joined, numbers = b"".join(content), np.array(hashes, dtype="<u8").tobytes()
        record.part_sha256, record.hashes_sha256 = (hashlib.sha256(one).hexdigest() for one in (joined, numbers))
        write_atomically(folder / f"{unit.index:05d}.part", joined)
        write_atomically(folder / f"{unit.index:05d}.hashes", numbers)
        write_atomically(folder / f"{unit.index:05d}.json", json.dumps(asdict(record)))
        return record

    def _encoded(self, unit: Unit, record: UnitRecord) -> Iterator[tuple[list[bytes], list[NDArray[np.int64]]]]:
        """The texts in batches, and their ids."""
        for batch in _batches(self._texts(unit, record)):
            kept: list[tuple[bytes, NDArray[np.int64]]] = []
            for (place, text), ids in zip(batch, self.tokenizer.encode([text for _, text in batch]), strict=True):
                if holds_end(self.tokenizer, ids):
                    token = "the end-of-document token itself, which this tokenizer reads in text"
                    self._leave_out(record, f"{place} holds {token}: {text[:60]!r}...")
                else:
                    kept.append((text, ids))
            yield [text for text, _ in kept], [ids for _, ids in kept]

    def _texts(self, unit: Unit, record: UnitRecord) -> Iterator[tuple[str, bytes]]:
        """Where each text stands, and the text."""
        for source, number, raw in unit.documents:
            kind = Kind(self.job.kinds[source])
            if is_blank(kind, raw):
                continue
            place = place_of(self.job.names[source], kind, number)
            try:
                text = text_of(kind, raw, self.job.field, utf8=self.job.tokenizer != BYTES_NAME)
            except ValueError as error:
                self._leave_out(record, f"{place} {error}")
                continue
            if text:
                yield place, text
            else:
                record.empty += 1

    def _leave_out(self, record: UnitRecord, reason: str) -> None:
        if not self.job.skip:
            raise DocumentError(reason)
        record.note_skipped(reason)

    def _joined(self, documents: Sequence[NDArray[np.int64]], size: int) -> tuple[PartRecord, list[NDArray[Any]]]:
        """Ids of the documents, each with the end-of-document id, and where each ends."""
        lengths = np.array([len(ids) + 1 for ids in documents], dtype=np.int64)
        ends = np.cumsum(lengths).astype(ENDS)
        tokens = np.full(int(lengths.sum()), self.tokenizer.end_of_document, dtype=DTYPES[self.job.dtype])
        for ids, last in zip(documents, ends, strict=True):
            tokens[last - 1 - len(ids) : last - 1] = ids
        return PartRecord(len(tokens), len(documents), size), [tokens, ends]


def _batches(texts: Iterator[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    held = 0
    for place, text in texts:
        batch.append((place, text))
        held += len(text)
        if held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def read_unit(path: Path) -> UnitRecord:
    """The record in a file. Raises OSError, ValueError, KeyError or TypeError."""
    found = parse_json(path.read_bytes())
    parts = {split: PartRecord(**part) for split, part in found.pop("parts").items()}
    return UnitRecord(**{**found, "end": tuple(found["end"]), "parts": parts})


_worker: Worker | None = None


def start(job: Job) -> None:
    """Begin a worker process. It ends with the process that started it, however that one ends."""
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a worker per core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(job)


def write(unit: Unit) -> UnitRecord:
    """`Worker.write` of this process's worker."""
    if _worker is None:
        raise RuntimeError("this process has not been started as a worker")
    return _worker.write(unit)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
