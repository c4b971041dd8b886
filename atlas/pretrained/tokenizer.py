"""A tokenizer of bytes as the library `tokenizers` reads it: the id of a token is the value of its byte."""

from __future__ import annotations

from typing import Any

# Byte-level tokenizers write a byte as a letter: itself where it prints, else one from 256 on (GPT-2's table).
_PRINTED = (*range(33, 127), *range(161, 173), *range(174, 256))


def byte_tokenizer() -> dict[str, Any]:
    """The content of tokenizer.json. It has no special tokens: all 256 ids are bytes."""
    hidden = [byte for byte in range(256) if byte not in _PRINTED]
    letters = {byte: chr(byte) for byte in _PRINTED} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []},
    }


TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
