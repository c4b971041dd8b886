"""Documents that stand in the sources more than once, and text that stands in both parts of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from atlas.data.leakage import block_tokens, shared_blocks
from atlas.data.store_format import DTYPES, SplitRecord, files_of


def count_duplicates(units: Path, indices: Sequence[int]) -> int:
    """Documents that equal an earlier one, by the first 64 bits of the SHA-256 of their text."""
    hashes = np.concatenate([np.fromfile(units / f"{index:05d}.hashes", dtype="<u8") for index in indices])
    return len(hashes) - len(np.unique(hashes))


def validation_in_training(store: Path, splits: Mapping[str, SplitRecord], dtype: str, vocabulary: int) -> float:
    """The share of the blocks of validation tokens that stand in training; see `block_tokens`."""
    tokens, text = (sum(getattr(one, what) for one in splits.values()) for what in ("tokens", "bytes"))
    block = block_tokens(text / tokens)
    train, validation = (
        np.memmap(store / files_of(split)[0], dtype=DTYPES[dtype], mode="r") for split in ("train", "validation")
    )
    return round(shared_blocks(train, validation, block=block, symbols=vocabulary)[0], 4)
