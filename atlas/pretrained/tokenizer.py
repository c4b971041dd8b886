"""The tokenizer of an exported model, as the library `tokenizers` reads it: that of its token store, or bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas.config.untrusted import read_json
from atlas.data.tokenizer import BYTES_END, END_NAMES, MOST_TOKENIZER_BYTES

# Byte-level tokenizers write a byte as a letter: itself where it prints, else one from 256 on (GPT-2's table).
_PRINTED = (*range(33, 127), *range(161, 173), *range(174, 256))


def tokenizer_content(file: Path | None, vocabulary: int) -> dict[str, Any]:
    """The content of tokenizer.json. `file`: the run's, None where tokens are bytes. Raises OSError, ValueError."""
    if file is None:
        return byte_tokenizer(with_end=vocabulary > BYTES_END)
    content: dict[str, Any] = read_json(file, MOST_TOKENIZER_BYTES)
    return content


def end_token(content: Mapping[str, Any], known: int | None = None) -> tuple[str, int] | None:
    """Name and id of the end-of-document token: the special token of the id `known`, else the first of a usual name."""
    special = {token["content"]: int(token["id"]) for token in content.get("added_tokens") or [] if token["special"]}
    ends = [name for name, number in special.items() if number == known] or [one for one in END_NAMES if one in special]
    return (ends[0], special[ends[0]]) if ends else None


def tokenizer_settings(end: tuple[str, int] | None) -> dict[str, Any]:
    """The content of tokenizer_config.json. `end`: as `end_token` gives it."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    return settings | ({"eos_token": end[0]} if end else {})


def byte_tokenizer(*, with_end: bool = False) -> dict[str, Any]:
    """The id of a token is the value of its byte; with an end of documents, that is the id after them."""
    hidden = [byte for byte in range(256) if byte not in _PRINTED]
    letters = {byte: chr(byte) for byte in _PRINTED} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": BYTES_END, "content": END_NAMES[0], "special": True, **plain}
    return {
        "version": "1.0",
        "added_tokens": [end] if with_end else [],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []},
    }
