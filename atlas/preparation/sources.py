"""The sources of a preparation: which files the arguments name, and how each is read."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from atlas.config import ConfigError, require
from atlas.config.untrusted import read_json
from atlas.data.files import HEAD_BYTES, absolute, fault_of_text, find_files
from atlas.preparation.compression import SourceError, opened
from atlas.preparation.settings import Format, PrepareSettings

HUB = "hub:"  # hub:OWNER/NAME or hub:OWNER/NAME:SUBSET
_HUB_NAME = re.compile(r"hub:[\w.-]+/[\w.-]+(:[\w.-]+)?")
COMPRESSIONS = (".gz", ".zst")
FORMATS = {".jsonl": Format.jsonl, ".ndjson": Format.jsonl, ".parquet": Format.parquet}
STATE_FILE, SPLITS_FILE = "state.json", "dataset_dict.json"  # of folders saved by `datasets`


class Kind(StrEnum):
    text = "text"
    jsonl = "jsonl"
    parquet = "parquet"
    arrow = "arrow"  # a file of a folder saved by `datasets`
    hub = "hub"


@dataclass(frozen=True)
class Source:
    """A file, or a data set of the hub. `size` and `modified` tell whether it is the file of before; 0 for the hub."""

    name: str  # absolute path, or hub:OWNER/NAME
    kind: Kind
    compression: str = ""  # "gz" or "zst"
    size: int = 0  # bytes
    modified: int = 0  # ns


def find_sources(settings: PrepareSettings) -> tuple[list[Source], list[str]]:
    """The sources in the order of their names, each once, and a line on the files that were passed over.

    Raises `ConfigError` for an argument that names nothing, and for a file named in full that cannot be used.
    """
    found: dict[str, Source] = {}
    passed_over: list[str] = []
    for argument in settings.sources:
        if argument.startswith(HUB):
            require(_HUB_NAME.fullmatch(argument) is not None, "SOURCE", argument, "hub:OWNER/NAME[:SUBSET]")
            found[argument] = Source(argument, Kind.hub)
            continue
        saved = _saved_files(absolute(argument), settings.split)
        if saved is not None:
            found |= {str(path): _source(path, Kind.arrow) for path in saved}
            continue
        paths, named = find_files([argument], "SOURCE")
        for path in paths:
            if path.is_relative_to(settings.partial) or path.is_relative_to(settings.folder):
                allowed = f"another place than that of the source {argument!r}"
                require(path not in named, "out", settings.out, allowed)
                continue  # the store itself, where a pattern finds it
            fault = "" if str(path) in found else _take(path, settings, found)
            require(
                not fault or path not in named, "SOURCE", argument, f"a file that can be read; {str(path)!r} {fault}"
            )
            passed_over += [f"{str(path)!r} {fault}"] if fault else []
    reason = f"; all {len(passed_over)} files found are of no use; the first: {passed_over[0]}" if passed_over else ""
    require(len(found) > 0, "SOURCE", " ".join(settings.sources), f"files of text, JSONL or Parquet{reason}")
    files = f"{len(passed_over)} file{'s' if len(passed_over) > 1 else ''}"
    notes = [f"{files} passed over; the first: {passed_over[0]}"] if passed_over else []
    return [found[name] for name in sorted(found)], notes


def _take(path: Path, settings: PrepareSettings, found: dict[str, Source]) -> str:
    """Add the file to `found`, or say why it is of no use."""
    suffix = path.suffix.lower()
    compression = suffix.removeprefix(".") if suffix in COMPRESSIONS else ""
    inner = Path(path.stem).suffix.lower() if compression else suffix
    chosen = settings.format
    if chosen is Format.auto:
        allowed = "given with format=jsonl (an object in each line) or format=text"
        require(inner != ".json", "SOURCE", path, allowed)
        chosen = FORMATS.get(inner, Format.text)
    kind = Kind(chosen.value)
    try:
        if not path.is_file():
            return "is a link to nothing" if path.is_symlink() and not path.exists() else "is no regular file"
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    fault = "" if head else "is empty"
    if head and kind is Kind.text:
        with suppress(SourceError):  # the workers tell it
            with opened(str(path), compression) as (content, _):
                head = content.read(HEAD_BYTES)
            fault = fault_of_text(head)
    if not fault:
        found[str(path)] = _source(path, kind, compression)
    return fault


def _source(path: Path, kind: Kind, compression: str = "") -> Source:
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"SOURCE={path}: must be a file that can be read ({error.strerror})") from error
    return Source(str(path), kind, compression, status.st_size, status.st_mtime_ns)


def _saved_files(folder: Path, split: str) -> list[Path] | None:
    """The files of a folder that `datasets.save_to_disk` wrote, in their order; None for any other folder."""
    if (folder / SPLITS_FILE).is_file():
        names = _read(folder / SPLITS_FILE).get("splits", [])
        require(split in names, "split", split, f"one of {', '.join(map(str, names))}, the splits of {folder}")
        folder = folder / split
    if not (folder / STATE_FILE).is_file() or not (folder / "dataset_info.json").is_file():
        return None
    state = _read(folder / STATE_FILE)
    require(
        not state.get("_indices_data_files"), "SOURCE", folder, "saved anew by datasets: it holds a selection of rows"
    )
    try:
        return [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"SOURCE={folder}: must be a folder saved by datasets ({STATE_FILE} names no files)"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"SOURCE={path.parent}: must be a folder saved by datasets ({path.name}: {error})") from error
    return content if isinstance(content, dict) else {}
