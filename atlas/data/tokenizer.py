"""Tokenizers: bytes, or a `tokenizer.json` as the `tokenizers` library writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atlas.config import ConfigError, require, with_extra
from atlas.config.untrusted import open_regular
from atlas.data.ruler import ruler_pieces
from atlas.data.symbols import BYTE_SYMBOLS, MARKER, NOISE, PRINTABLE, Symbols, choose_symbols

BYTES_NAME = "bytes"
BYTES_END = 256  # the id after those of the 256 bytes
MOST_TOKENIZER_BYTES = 256 << 20
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|end▁of▁sentence|>")


class Tokenizer(Protocol):
    """Documents -> ids in [0, vocabulary). `end_of_document` never stands inside of an encoded document."""

    name: str
    end_of_document: int
    sha256: str  # of what defines it

    @property
    def vocabulary(self) -> int: ...

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
        """The ids of each text, without an end of document. Raises UnicodeDecodeError where text must be UTF-8."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; what is no text is replaced."""
        ...

    def symbols(self) -> Symbols:
        """The ids of needles and haystacks."""
        ...


class ByteTokenizer:
    """A byte is its own id."""

    name = BYTES_NAME
    end_of_document = BYTES_END
    sha256 = hashlib.sha256(BYTES_NAME.encode()).hexdigest()

    @property
    def vocabulary(self) -> int:
        return BYTES_END + 1

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
        return [np.frombuffer(text, dtype=np.uint8).astype(np.int64) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one < self.end_of_document).decode("utf-8", "replace")

    def symbols(self) -> Symbols:
        pieces = ruler_pieces(lambda text: list(text.encode()), range(ord("0"), ord("9") + 1))
        return replace(BYTE_SYMBOLS, vocabulary=self.vocabulary, ruler=pieces)


class LibraryTokenizer:
    """A `tokenizer.json`. `end`: the text of its end-of-document token, "" for the usual names, None where it may lack.

    Special tokens that stand in a text are read as text. Raises `ConfigError` naming `key`.
    """

    def __init__(self, path: Path, end: str | None = "", key: str = "tokenizer") -> None:
        self.name = path.name
        try:
            with open_regular(path) as file:
                content = file.read(MOST_TOKENIZER_BYTES)
        except OSError as error:
            raise ConfigError(f"{key}={path}: must be a tokenizer.json that can be read ({error.strerror})") from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        library = import_library("tokenizers", key, path)
        try:
            self._tokenizer = library.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain Exception
            reason = " ".join(str(error).split())[:200]
            allowed = f"a tokenizer.json of the tokenizers library ({reason})"
            raise ConfigError(f"{key}={path}: must be {allowed}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token.content: number for number, token in added.items() if token.special}
        names = [end] if end else [name for name in END_NAMES if name in special]
        known = f"one of its special tokens {sorted(special)}" if special else "a special token, of which it has none"
        found = bool(names) and names[0] in special
        require(
            found or end is None, "end_of_document", end or "(none of the usual names)", f"{known}, in {str(path)!r}"
        )
        self.end_of_document: int = special[names[0]] if found else -1

    @cached_property
    def vocabulary(self) -> int:
        """The largest id plus one: the ids of added tokens may leave gaps."""
        largest: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        return 1 + largest

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
        decoded = [text.decode("utf-8") for text in texts]
        encoded = self._tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int64) for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self, ids: Iterator[int]) -> Iterator[str]:
        """The text of ids as they come; a character waits for its last id, or for the end of the ids."""
        stream = import_library("tokenizers", "tokenizer", self.name).decoders.DecodeStream(skip_special_tokens=True)
        waiting: list[int] = []
        for one in ids:
            waiting.append(one)
            if text := stream.step(self._tokenizer, one):
                yield text
                waiting = []
        if rest := self.decode(waiting):
            yield rest

    def symbols(self) -> Symbols:
        characters = [chr(number) for number in (MARKER, *range(*PRINTABLE))]
        encoded = self.encode([one.encode() for one in characters])
        single = {one: int(ids[0]) for one, ids in zip(characters, encoded, strict=True) if len(ids) == 1}
        special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        ordinary = [one for one in self._tokenizer.get_vocab(with_added_tokens=False).values() if one not in special]
        symbols = choose_symbols(single, self.encode([NOISE])[0].tolist(), ordinary, self.vocabulary)
        pieces = ruler_pieces(lambda text: self.encode([text.encode()])[0].tolist(), symbols.values[:10].tolist())
        return replace(symbols, ruler=pieces)


def import_library(name: str, key: str, value: object) -> Any:
    """A package of the extra `[data]`. Raises `ConfigError` where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        needed = f"used with the package {package} {with_extra('data')}"
        raise ConfigError(f"{key}={value}: must be {needed}") from error
