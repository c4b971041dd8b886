"""Characters that a tokenizer does not give back: it drops them, changes them or takes them for unknown.

Bits per byte count their bytes all the same, though no token has to be predicted for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from atlas.data.tokenizer import Tokenizer

WARNED_FROM = 0.001  # share of the characters
PIECE_BYTES, EVERY_BYTES = 4 << 10, 128 << 10  # what is looked at: 3 % of the text


def count_lost(tokenizer: Tokenizer, texts: Sequence[bytes]) -> tuple[int, int]:
    """Lost characters and all, of pieces of the texts. White space does not count: decoders place it anew."""
    joined = b"\n".join(texts)
    pieces = [_words(joined, start) for start in range(0, len(joined), EVERY_BYTES)]
    lost = seen = 0
    for piece, ids in zip(pieces, tokenizer.encode([one.encode() for one in pieces]), strict=True):
        before, after = (Counter("".join(text.split())) for text in (piece, tokenizer.decode(ids.tolist())))
        lost += (before - after).total()
        seen += before.total()
    return lost, seen


def lost_share(tokenizer: Tokenizer, texts: Sequence[bytes]) -> float:
    lost, seen = count_lost(tokenizer, texts)
    return lost / max(seen, 1)


def _words(text: bytes, start: int) -> str:
    """Those of a piece, without the ones at its ends that may be cut, which a tokenizer of words does not know."""
    end = start + PIECE_BYTES
    words = text[start:end].decode("utf-8", "ignore").split()
    return " ".join(words[start > 0 : -1 if end < len(text) else None] or words)
