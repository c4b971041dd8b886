"""Reading a source: its documents in order, as they stand in it. Decoding and tokenising is the workers' part."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import IO, Any

from atlas.config import ConfigError, require
from atlas.data.tokenizer import import_library
from atlas.preparation.compression import SourceError, opened
from atlas.preparation.settings import PrepareSettings
from atlas.preparation.sources import Kind, Source

PIECE_BYTES = 1 << 20
LARGEST_DOCUMENT = 1 << 30  # bytes; a document is held in memory
Raw = bytes | str | None  # text, a line of JSONL, or a value of a column
Item = tuple[Raw, float]  # and the share of the source that is read


def read_source(source: Source, settings: PrepareSettings) -> Generator[Item, None, None]:
    """The documents of a source. Raises `SourceError`, and `ConfigError` for a setting that does not fit it."""
    if source.kind is Kind.hub:
        yield from _hub(source, settings)
    elif source.kind is Kind.parquet:
        yield from _parquet(source, settings.field)
    elif source.kind is Kind.arrow:
        yield from _arrow(source, settings.field)
    else:
        with opened(source.name, source.compression) as (content, file):
            documents = _lines(content) if source.kind is Kind.jsonl else _cut(content, settings.cut)
            for document in documents:
                yield document, min(file.tell() / max(source.size, 1), 1.0)


def _lines(content: IO[bytes]) -> Iterator[bytes]:
    while line := content.readline(LARGEST_DOCUMENT):
        _require_room(len(line) < LARGEST_DOCUMENT)
        yield line


def _cut(content: IO[bytes], separator: bytes) -> Iterator[bytes]:
    """The text as one document, or its pieces between separators, which are left out."""
    if not separator:
        whole = content.read(LARGEST_DOCUMENT)
        _require_room(len(whole) < LARGEST_DOCUMENT)
        yield whole
        return
    rest = bytearray()
    while piece := content.read(PIECE_BYTES):
        searched = max(len(rest) - len(separator) + 1, 0)
        rest += piece
        _require_room(len(rest) < LARGEST_DOCUMENT)
        if rest.find(separator, searched) >= 0:
            *documents, rest = rest.split(separator)
            yield from map(bytes, documents)
    yield bytes(rest)


def _require_room(holds: bool) -> None:
    if not holds:
        limit = f"{LARGEST_DOCUMENT >> 30} GiB"
        raise SourceError(f"holds a document of more than {limit}; separator=TEXT cuts a text into documents")


def _parquet(source: Source, column: str) -> Iterator[Item]:
    arrow = import_library("pyarrow", "SOURCE", source.name)
    parquet = import_library("pyarrow.parquet", "SOURCE", source.name)
    try:
        with parquet.ParquetFile(source.name) as file:
            _require_texts(arrow, file.schema_arrow, column)
            rows, done = file.metadata.num_rows, 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for text in _texts(arrow, batch.column(0)):
                    done += 1
                    yield text, done / rows
    except (arrow.ArrowException, OSError) as error:
        raise SourceError(f"is no sound Parquet file ({' '.join(str(error).split())[:200]})") from error


def _arrow(source: Source, column: str) -> Iterator[Item]:
    arrow = import_library("pyarrow", "SOURCE", source.name)
    try:
        with arrow.memory_map(source.name) as file, arrow.ipc.open_stream(file) as stream:
            _require_texts(arrow, stream.schema, column)
            before = 0.0
            for batch in stream:
                read = file.tell() / max(source.size, 1) - before
                for number, text in enumerate(_texts(arrow, batch.column(column)), 1):
                    yield text, before + read * number / batch.num_rows
                before += read
    except (arrow.ArrowException, OSError) as error:
        raise SourceError(f"is no sound file of datasets ({' '.join(str(error).split())[:200]})") from error


def _require_texts(arrow: Any, schema: Any, column: str) -> None:
    kinds = arrow.types
    if column not in schema.names:
        raise SourceError(f"has no column {column!r}; it has {', '.join(schema.names)} (field=NAME)")
    kind = schema.field(column).type
    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    if not (kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)):
        raise SourceError(f"has no text in column {column!r}, but {kind}")


def _texts(arrow: Any, column: Any) -> list[Raw]:
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        texts: list[Raw] = column.to_pylist()
    except UnicodeDecodeError:  # whoever wrote the file did not look; `text_of` does
        texts = column.cast(arrow.large_binary()).to_pylist()
    return texts


def _hub(source: Source, settings: PrepareSettings) -> Iterator[Item]:
    datasets = import_library("datasets", "SOURCE", source.name)
    name, _, subset = source.name.partition(":")[2].partition(":")
    try:
        rows = datasets.load_dataset(name, subset or None, split=settings.split, streaming=True)
        first = True
        for row in rows:
            if first and settings.field not in row:
                raise SourceError(f"has no column {settings.field!r}; it has {', '.join(row)} (field=NAME)")
            first = False
            yield row[settings.field], 0.0
    except (SourceError, ConfigError):
        raise
    except Exception as error:  # the library and its network raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        allowed = f"a data set that the hub gives; it needs a network ({reason})"
        require(False, "SOURCE", source.name, allowed)
