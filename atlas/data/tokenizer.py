"""Tokenizers: bytes, or a `tokenizer.json` as the `tokenizers` library writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atlas.config import ConfigError, require
from atlas.config.untrusted import open_regular

BYTES = "bytes"
BYTE_VOCABULARY = 257  # the 256 bytes, and the end of a document
MOST_TOKENIZER_BYTES = 256 << 20
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|end▁of▁sentence|>")
INSTALL = 'pip install -c constraints.txt -e ".[data]"'


class Tokenizer(Protocol):
    """Documents -> ids in [0, vocabulary). `end_of_document` never stands inside of an encoded document."""

    name: str
    vocabulary: int
    end_of_document: int
    sha256: str  # of what defines it

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
        """The ids of each text, without an end of document. Raises UnicodeDecodeError where text must be UTF-8."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; what is no text is replaced."""
        ...


class ByteTokenizer:
    """A byte is its own id."""

    name = BYTES
    vocabulary = BYTE_VOCABULARY
    end_of_document = 256
    sha256 = hashlib.sha256(BYTES.encode()).hexdigest()

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
        return [np.frombuffer(text, dtype=np.uint8).astype(np.int64) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one < self.end_of_document).decode("utf-8", "replace")


class LibraryTokenizer:
    """A `tokenizer.json`. `end`: the text of its end-of-document token, "" for the usual names.

    Special tokens that stand in a text are read as text. Raises `ConfigError` naming `key`.
    """

    def __init__(self, path: Path, end: str = "", key: str = "tokenizer") -> None:
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
        require(found, "end_of_document", end or "(none of the usual names)", f"{known}, in {str(path)!r}")
        self.end_of_document: int = special[names[0]]

    @cached_property
    def vocabulary(self) -> int:
        """The largest id plus one: the ids of added tokens may leave gaps."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.int64]]:
        decoded = [text.decode("utf-8") for text in texts]
        encoded = self._tokenizer.encode_batch_fast(decoded, add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int64) for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def import_library(name: str, key: str, value: object) -> Any:
    """A package of the extra `[data]`. Raises `ConfigError` where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(f"{key}={value}: must be used with the package {package} installed: {INSTALL}") from error
