"""Which documents are for validation: those whose hash is below a bound, so that equal documents fall on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing

from atlas.data.tokenizer import BYTES_NAME, Tokenizer
from atlas.preparation.compression import SourceError
from atlas.preparation.documents import holds_end, is_blank, text_of
from atlas.preparation.readers import read_source
from atlas.preparation.settings import PrepareSettings
from atlas.preparation.sources import Kind, Source

HASH_BITS = 64
MOST_DOCUMENTS = 10_000  # that are looked at beforehand


def hash_of(text: bytes) -> int:
    """The first 64 bits of the SHA-256."""
    return int.from_bytes(hashlib.sha256(text).digest()[: HASH_BITS // 8], "big")


def validation_below(sources: Sequence[Source], settings: PrepareSettings, tokenizer: Tokenizer) -> float:
    """The bound on the hashes of validation documents: `validation_share` of all hashes.

    Where the sources have so few documents that a part would get none, it gets one.
    """
    bound = settings.validation_share * 2.0**HASH_BITS
    if any(source.kind is Kind.hub for source in sources):
        return bound
    least, most = 2**HASH_BITS, -1  # hashes
    for count, text in enumerate(_texts(sources, settings, utf8=tokenizer.name != BYTES_NAME), 1):
        number = hash_of(text)
        if not least <= number <= most and holds_end(tokenizer, tokenizer.encode([text])[0]):
            continue  # left out, see `worker.py`
        least, most = min(least, number), max(most, number)
        if least < bound <= most or count == MOST_DOCUMENTS:  # each part has one, or they are many
            return bound
    if least >= most:  # none, or copies of one
        return bound
    return least + 1 if least >= bound else most


def _texts(sources: Sequence[Source], settings: PrepareSettings, *, utf8: bool) -> Iterator[bytes]:
    """What cannot be read is left out: the workers tell it."""
    for source in sources:
        try:
            with closing(read_source(source, settings)) as documents:
                for raw, _ in documents:
                    if is_blank(source.kind, raw):
                        continue
                    try:
                        text = text_of(source.kind, raw, settings.field, utf8=utf8)
                    except ValueError:
                        continue
                    if text:
                        yield text
        except SourceError:
            continue
