"""The grid of chunks and shards on which the memories learn. It can change between two calls."""

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
    """The memory branch in a forward pass; all modes but `learn` are controls for probes."""

    learn = "learn"  # writes and reads
    frozen = "frozen"  # reads the initial weights, writes nothing
    off = "off"  # recalls zeros, so that the gate depends on its bias alone
