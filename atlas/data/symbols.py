"""The ids that needles and haystacks are made of, in the vocabulary of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas.config import require

MARKER = 1  # the byte 0x01 opens every event; text does not contain it
KEY_ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", dtype=np.uint8)
VALUE_ALPHABET = np.frombuffer(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", dtype=np.uint8)
NOISE = b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "  # RULER single_1
PRINTABLE = (32, 127)  # the bytes of a random haystack
BYTES = 256

Ids = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, eq=False)
class RulerPieces:
    """The ids of RULER's prompt, cut where the word and the number stand, see `ruler.py`."""

    preface: Ids
    needle: tuple[Ids, Ids, Ids]
    question: tuple[Ids, Ids, Ids]
    words: Mapping[str, Ids]
    digits: Ids  # 10


@dataclass(frozen=True, eq=False)
class Symbols:
    """Ids in [0, `vocabulary`). With bytes an id is its byte; a token store brings those of its tokenizer."""

    vocabulary: int
    marker: int  # opens every event
    keys: Ids  # 52: a symbol of a key
    values: Ids  # 62: a symbol of a value
    noise: Ids  # RULER's sentences
    random: Ids  # the ids of a random haystack
    blank: int
    ruler: RulerPieces | None = None  # None: the prompt is made of bytes

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.keys.dtype

    def record(self) -> dict[str, Any]:
        """As plain data, for a store's record."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Symbols:
        """Raises KeyError, TypeError or ValueError for what `record` does not give."""
        vocabulary = int(record["vocabulary"])
        arrays = {name: np.array(record[name], dtype=np.uint32) for name in ("keys", "values", "noise", "random")}
        sizes = {"keys": len(KEY_ALPHABET), "values": len(VALUE_ALPHABET)}
        for name, ids in arrays.items():
            if ids.ndim != 1 or len(ids) != sizes.get(name, max(len(ids), 1)) or ids.max() >= vocabulary:
                raise ValueError(f"symbols {name}")
        for name in ("keys", "values"):
            if len(set(arrays[name].tolist())) < len(arrays[name]):
                raise ValueError(f"symbols {name}")
        single = {name: int(record[name]) for name in ("marker", "blank")}
        if not all(0 <= one < vocabulary for one in single.values()):
            raise ValueError("symbols marker, blank")
        ruler = _ruler(record["ruler"], vocabulary)
        keys, values, noise, random = (arrays[name] for name in ("keys", "values", "noise", "random"))
        return cls(vocabulary, single["marker"], keys, values, noise, random, single["blank"], ruler)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def _ruler(record: Any, vocabulary: int) -> RulerPieces | None:
    if record is None:
        return None

    def ids(listed: Any) -> Ids:
        array = np.array(listed, dtype=np.uint32)
        if array.ndim != 1 or (array >= vocabulary).any():
            raise ValueError("symbols ruler")
        return array

    needle, question = (tuple(map(ids, record[name])) for name in ("needle", "question"))
    words = {str(word): ids(listed) for word, listed in record["words"].items()}
    digits = ids(record["digits"])
    if len(needle) != 3 or len(question) != 3 or len(digits) != 10 or not words:
        raise ValueError("symbols ruler")
    return RulerPieces(ids(record["preface"]), needle, question, words, digits)


BYTE_SYMBOLS = Symbols(
    vocabulary=BYTES,
    marker=MARKER,
    keys=KEY_ALPHABET,
    values=VALUE_ALPHABET,
    noise=np.frombuffer(NOISE, dtype=np.uint8),
    random=np.arange(*PRINTABLE, dtype=np.uint8),
    blank=ord(" "),
)


def choose_symbols(
    single: Mapping[str, int], noise: Sequence[int], ordinary: Sequence[int], vocabulary: int
) -> Symbols:
    """The ids of the characters that bytes would use, where they are ids of their own; else other ordinary ids.

    `single`: the id of each character that is one token; `noise`: those of RULER's sentences, [] where it has
    none for them; `ordinary`: all ids that stand for text, of which the highest, the rarest, are taken first.
    """
    characters = [chr(MARKER), *map(chr, VALUE_ALPHABET)]
    chosen: dict[str, int] = {}
    for one in characters:
        if one in single and single[one] not in chosen.values():
            chosen[one] = single[one]
    spare = [one for one in sorted(ordinary) if one not in {*chosen.values(), *noise}]
    missing = [one for one in characters if one not in chosen]
    allowed = f"one with {len(missing)} ordinary ids for the characters of needles that have none of their own"
    require(len(spare) >= len(missing), "tokenizer", f"(of {vocabulary} ids)", allowed)
    chosen |= {one: spare.pop() for one in missing}
    printable = sorted({single[one] for one in map(chr, range(*PRINTABLE)) if one in single} - {chosen[chr(MARKER)]})
    random = printable or sorted(set(chosen.values()) - {chosen[chr(MARKER)]})
    arrays = (
        [chosen[chr(one)] for one in KEY_ALPHABET],
        [chosen[chr(one)] for one in VALUE_ALPHABET],
        noise or spare[: len(NOISE)] or random,
        random,
    )
    keys, values, noises, haystack = (np.array(ids, dtype=np.uint32) for ids in arrays)
    blank = single.get(" ", int(noises[0]))
    return Symbols(vocabulary, chosen[chr(MARKER)], keys, values, noises, haystack, blank)
