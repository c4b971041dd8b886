"""A document as it stands in its source -> its text."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from atlas.config.untrusted import parse_json
from atlas.data.tokenizer import Tokenizer
from atlas.preparation.readers import Raw
from atlas.preparation.sources import Kind

_WORDS = {Kind.jsonl: "line", Kind.parquet: "row", Kind.arrow: "row", Kind.hub: "row"}


def is_blank(kind: Kind, raw: Raw) -> bool:
    """Whether this is a line between the lines of JSONL."""
    return kind is Kind.jsonl and isinstance(raw, bytes) and not raw.strip()


def text_of(kind: Kind, raw: Raw, field: str, *, utf8: bool) -> bytes:
    """The text, UTF-8 where that is asked for. Raises ValueError; its message follows `place_of`."""
    value = _member(raw, field) if kind is Kind.jsonl and isinstance(raw, bytes) else raw
    if value is None:
        raise ValueError(f"has null for {field!r}")
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"has half of a character in {field!r}, at {error.start}") from error
    if not isinstance(value, bytes):
        raise ValueError(f"has no text in {field!r}, but {type(value).__name__}")
    if utf8:
        try:
            value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 at byte {error.start}") from error
    return value


def holds_end(tokenizer: Tokenizer, ids: NDArray[np.int64]) -> bool:
    """Whether the ids of a text would end a document inside of it."""
    return bool((ids == tokenizer.end_of_document).any())


def place_of(name: str, kind: Kind, number: int) -> str:
    """Where a document stands."""
    if kind in _WORDS:
        return f"{name!r} {_WORDS[kind]} {number}"
    return f"{name!r} document {number}" if number > 1 else repr(name)


def _member(line: bytes, field: str) -> object:
    try:
        found = parse_json(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg}, column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start}") from error
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    if field not in found:
        raise ValueError(f"has no field {field!r}; it has {', '.join(found) or 'none'} (field=NAME)")
    value: object = found[field]
    return value
