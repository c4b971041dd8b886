"""One preparation from arguments to a whole store: it appears under its name when it is complete, and not before."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from atlas.config import ConfigError, require
from atlas.config.atomic import sync_folder, write_atomically
from atlas.config.console import duration
from atlas.config.console import log as progress_log
from atlas.config.lock import LockedError, RunLock
from atlas.config.path_overrides import expanded
from atlas.data.store import sha256_of
from atlas.data.store_format import (
    SPLITS,
    STORE_FILE,
    TOKENIZER_FILE,
    SplitRecord,
    StoreRecord,
    files_of,
    read_record,
)
from atlas.data.symbols import Symbols
from atlas.data.tokenizer import BYTES_NAME, Tokenizer
from atlas.preparation.duplicates import count_duplicates, validation_in_training
from atlas.preparation.lost_characters import WARNED_FROM
from atlas.preparation.sample import dtype_of, require_room, train_tokenizer
from atlas.preparation.settings import OnError, PrepareSettings
from atlas.preparation.sources import Source, find_sources
from atlas.preparation.split import MOST_DOCUMENTS, validation_below
from atlas.preparation.units import Place, Unit, unit_bytes, units
from atlas.preparation.work import Work, open_work, remove_work, require_same
from atlas.preparation.worker import DocumentError, Job, UnitRecord, Worker, load_tokenizer, start, write

SHOWN = 20  # documents left out that the store names
AHEAD = 2  # units that wait for a worker
log = logging.getLogger("atlas")


def prepare(settings: PrepareSettings) -> tuple[StoreRecord, list[str]]:
    """Make the store, or finish what an earlier start has begun; returns its record and what the user should know.

    Raises `ConfigError` for what cannot be used, OSError for a disk that takes no more.
    """
    sources, notes = find_sources(settings)
    out, root = settings.folder, settings.partial
    asked = _asked(settings)
    if os.path.lexists(out):
        return _complete(settings, asked, sources)
    began = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = RunLock(root)
    except LockedError as error:
        raise ConfigError(f"out={settings.out}: must be prepared by one process ({error})") from error
    except OSError as error:
        allowed = f"a folder that can be written ({error.strerror})"
        raise ConfigError(f"out={settings.out}: must be {allowed}") from error
    try:
        if os.path.lexists(out):  # another process has made it in the meantime
            return _complete(settings, asked, sources)
        record = _prepare(settings, asked, sources, root)
        remove_work(root)
    except ConfigError:
        if began and not any((root / "units").glob("*.json")):  # nothing is half-made
            remove_work(root)
        raise
    finally:
        lock.release()
    if record.lost_characters and record.lost_characters > WARNED_FROM:
        lost = f"{record.lost_characters:.1%} of the characters are lost to this tokenizer"
        notes.append(f"{lost}, which drops, changes or does not know them: bits per byte will be too low")
    if record.skipped_count:
        notes.append(f"{record.skipped_count} documents left out; the first: {record.skipped[0]}")
    return record, notes


def _prepare(settings: PrepareSettings, asked: Mapping[str, Any], sources: Sequence[Source], root: Path) -> StoreRecord:
    require_same(root, asked)
    tokenizer = _tokenizer(settings, asked, sources, root)
    symbols = tokenizer.symbols()  # refuses a tokenizer before the work, not after
    bound = validation_below(sources, settings, tokenizer)
    fixed = {"validation_below": bound, "tokenizer_sha256": tokenizer.sha256}
    skip = settings.on_error is OnError.skip
    work = open_work(root, asked, sources, unit_bytes(sources), dtype_of(tokenizer), fixed, skip=skip)
    first = work.contiguous
    done = work.done[first - 1] if first else UnitRecord(-1, (0, 0), 0.0)
    total = sum(source.size for source in sources)
    require_room(root, sources, settings, tokenizer, done.read / max(total, 1))
    job = Job(
        units=str(work.units),
        names=[source.name for source in sources],
        kinds=[source.kind.value for source in sources],
        field=settings.field,
        tokenizer=BYTES_NAME if tokenizer.name == BYTES_NAME else str(root / tokenizer.name),
        end_of_document=settings.end_of_document,
        dtype=work.dtype,
        validation_below=bound,
        skip=skip,
    )
    missing = units(sources, settings, work.unit_bytes, first, Place(*done.end))
    clock = _Progress(total, done.read)
    work.take()
    for record in _written(job, (unit for unit in missing if unit.index not in work.done), settings.processes):
        work.done[record.index] = record
        work.take()
        clock.show(record.read)
    return _finish(settings, asked, sources, work, tokenizer, symbols)


def _written(job: Job, missing: Iterator[Unit], processes: int) -> Iterator[UnitRecord]:
    """The records of the units, in their order. Raises `ConfigError` for a document that cannot be used."""
    try:
        if processes == 1:
            yield from map(Worker(job).write, missing)
            return
        with _pool(job, processes) as pool:
            waiting: deque[Future[UnitRecord]] = deque()
            for unit in missing:
                waiting.append(pool.submit(write, unit))
                if len(waiting) > processes + AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except DocumentError as error:
        raise ConfigError(f"SOURCE: must be readable; {error} (on_error=skip leaves such documents out)") from error


@contextmanager
def _pool(job: Job, processes: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=start, initargs=(job,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _tokenizer(settings: PrepareSettings, asked: Mapping[str, Any], sources: Sequence[Source], root: Path) -> Tokenizer:
    """The tokenizer, in the work folder under its name from its first use on. Raises `ConfigError`.

    The name of one that is trained here has what it was trained on.
    """
    if settings.tokenizer == BYTES_NAME:
        return _named_tokenizer(settings)
    if settings.trained_vocabulary is None:
        kept = root / TOKENIZER_FILE
        tokenizer = _named_tokenizer(settings)
        if kept.exists():
            allowed = f"the tokenizer with which the unfinished work in {root} began; or remove that folder"
            same = load_tokenizer(str(kept), settings.end_of_document).sha256 == tokenizer.sha256
            require(same, "tokenizer", settings.tokenizer, allowed)
        write_atomically(kept, (Path.cwd() / expanded(settings.tokenizer)).read_bytes(), durable=True)
    else:
        kept = root / f"trained-{_sha256({**asked, **_listed(sources)})[:16]}.json"
        if not kept.exists():
            progress_log.info("trains a tokenizer of %d ids", settings.trained_vocabulary)
            write_atomically(kept, train_tokenizer(sources, settings, settings.trained_vocabulary), durable=True)
    return load_tokenizer(str(kept), settings.end_of_document)


def _named_tokenizer(settings: PrepareSettings) -> Tokenizer:
    """The tokenizer that the settings name, as it is now. Raises `ConfigError`."""
    name = settings.tokenizer
    given = name if name == BYTES_NAME else str(Path.cwd() / expanded(name))
    return load_tokenizer(given, settings.end_of_document)


def _finish(
    settings: PrepareSettings,
    asked: Mapping[str, Any],
    sources: Sequence[Source],
    work: Work,
    tokenizer: Tokenizer,
    symbols: Symbols,
) -> StoreRecord:
    """Write store.json, and give the folder its name."""
    counts = {split: work.total(split, "documents") for split in SPLITS}
    records = [work.done[index] for index in range(work.taken)]
    if not any(counts.values()):
        remove_work(work.root)
        empty, skipped = sum(one.empty for one in records), sum(one.skipped_count for one in records)
        lost = f"{empty} are empty and {skipped} could not be read"
        names = ", ".join(source.name for source in sources[:3])
        raise ConfigError(f"SOURCE={names}: must hold at least two documents with text; {lost}")
    for split, count in counts.items():
        if not count:
            documents = sum(counts.values())
            found = f"the sources have {documents} documents (separator=TEXT cuts a text into more)"
            if documents < MOST_DOCUMENTS:  # little work
                remove_work(work.root)
            else:
                found += f"; the work stays in {work.root}, to go on with more sources, or to be removed"
            allowed = f"such that training and validation each get a document: none is for {split}; {found}"
            raise ConfigError(f"validation_share={settings.validation_share}: must be {allowed}")
    work.sync()
    splits = {
        split: SplitRecord(
            work.total(split, "tokens"),
            work.total(split, "documents"),
            work.total(split, "bytes"),
            *(sha256_of(work.store / name) for name in files_of(split)),
        )
        for split in SPLITS
    }
    if tokenizer.name != BYTES_NAME:
        write_atomically(work.store / TOKENIZER_FILE, (work.root / tokenizer.name).read_bytes(), durable=True)
    progress_log.info("looks for text that stands in training and in validation")
    record = StoreRecord(
        dtype=work.dtype,
        vocabulary=tokenizer.vocabulary,
        end_of_document=tokenizer.end_of_document,
        tokenizer=settings.tokenizer if settings.trained_vocabulary is not None else tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        symbols=symbols.record(),
        splits=splits,
        duplicates=count_duplicates(work.units, [one.index for one in records]),
        validation_in_training=validation_in_training(work.store, splits, work.dtype, tokenizer.vocabulary),
        skipped=[place for one in records for place in one.skipped][:SHOWN],
        skipped_count=sum(one.skipped_count for one in records),
        empty=sum(one.empty for one in records),
        sources=list(settings.sources),
        settings={**asked, **_listed(sources)},
        lost_characters=sum(one.lost for one in records) / max(sum(one.looked_at for one in records), 1),
    )
    write_atomically(work.store / STORE_FILE, json.dumps(asdict(record), indent=1) + "\n", durable=True)
    work.store.rename(settings.folder)
    sync_folder(settings.folder.parent)
    return record


def _asked(settings: PrepareSettings) -> dict[str, Any]:
    return {"tokenizer": settings.tokenizer, **settings.shaping()}


def _listed(sources: Sequence[Source]) -> dict[str, str]:
    """Names and sizes of the sources as one hash, and their times as another."""
    listed = {
        "content": [[source.name, source.size] for source in sources],
        "modified": [source.modified for source in sources],
    }
    return {key: _sha256(one) for key, one in listed.items()}


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _complete(
    settings: PrepareSettings, asked: Mapping[str, Any], sources: Sequence[Source]
) -> tuple[StoreRecord, list[str]]:
    """The record of the store that is there already. Raises `ConfigError` where it is another one."""
    free = "a folder that does not exist yet"
    if not (settings.folder / STORE_FILE).is_file():
        raise ConfigError(f"out={settings.out}: must be {free}")
    record = read_record(settings.folder, "out")
    difference = _difference(settings.folder, record, asked, sources)
    require(not difference, "out", settings.out, f"{free}; it holds a store {difference}")
    whole = settings.on_error is OnError.skip or not record.skipped_count
    left_out = f"{free}; it holds a store without {record.skipped_count} documents that on_error=skip left out"
    require(whole, "out", settings.out, left_out)
    if settings.trained_vocabulary is None:
        same = _named_tokenizer(settings).sha256 == record.tokenizer_sha256
        require(same, "out", settings.out, f"{free}; it holds a store of another tokenizer")
    remove_work(settings.partial)  # killed after the store had got its name
    return record, [f"the store in {settings.folder} is complete: nothing is left to do"]


def _difference(store: Path, record: StoreRecord, asked: Mapping[str, Any], sources: Sequence[Source]) -> str:
    """In which setting, else by which source, the store is another one than is asked for; "" where it is not."""
    listed = _listed(sources)
    before = {"modified": listed["modified"], **record.settings}  # older stores have no times
    for key, value in asked.items():
        if before.get(key) != value:
            return f"with {key}={before.get(key)}, not {value}"
    if before == {**asked, **listed}:
        return ""
    made = (store / STORE_FILE).stat().st_mtime_ns
    newer = next((f": {one.name!r} is newer than it" for one in sources if one.modified > made), "")
    return f"of sources with other names, sizes or times{newer}"


class _Progress:
    """A line now and then: how much is read, how fast, how long it will take."""

    def __init__(self, total: int, read: float) -> None:
        self.total, self.first, self.began = total, read, time.monotonic()

    def show(self, read: float) -> None:
        seconds = time.monotonic() - self.began
        speed = max(read - self.first, 1.0) / max(seconds, 1e-9)
        left = (self.total - read) / speed
        rate = f"{speed / 1e6:.1f} MB/s, {duration(left)} left"
        progress_log.info("%.1f of %.1f MB read, %s", read / 1e6, self.total / 1e6, rate)
