"""On which grid of tokens the memories learn. It may change between two calls: prefill, decoding, stage 2."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from atlas.config import ChunkSizeConfig


class ChunkPlan(NamedTuple):
    """Chunks and shard in tokens; `shard=None` never resets the local memories (TNT's inference)."""

    local: tuple[int, ...]
    global_size: int
    shard: int | None

    @classmethod
    def from_config(cls, chunks: ChunkSizeConfig) -> ChunkPlan:
        return cls(tuple(chunks.local), chunks.global_size, chunks.shard)


class MemoryMode(StrEnum):
    """What the memory branch does in a forward pass; all but `learn` are controls for probes."""

    learn = "learn"  # writes and reads
    frozen = "frozen"  # reads the initial weights, writes nothing
    off = "off"  # gives zeros: the gate is its bias alone
