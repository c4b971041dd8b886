"""The grid of chunks and shards on which the memories learn. It can change between two calls."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from atlas.config import ChunkSizeConfig, RunConfig


class Lasting(NamedTuple):
    """What the global memory keeps of a text longer than those of training (lasting.py)."""

    rate: float  # the smallest whose write lasts for more than a period
    period: int  # tokens: the trained length changes nothing within it


class ChunkPlan(NamedTuple):
    """Chunks and shard in tokens; `shard=None` never resets the local memories (TNT's inference)."""

    local: tuple[int, ...]
    global_size: int
    shard: int | None
    lasting: Lasting | None = None  # None: all writes last

    @classmethod
    def from_config(cls, chunks: ChunkSizeConfig) -> ChunkPlan:
        return cls(tuple(chunks.local), chunks.global_size, chunks.shard)

    @classmethod
    def at_step(cls, config: RunConfig, step: int) -> ChunkPlan:
        """Of a step of training, and of its checkpoint: in Stage 2 the chunks depend on the step.

        A chunk need not divide the shard: the last one of a shard is then shorter.
        """
        plan = cls.from_config(config.chunk_size)
        return plan._replace(local=config.stage2.local(plan.local, step)) if config.stage2.enabled else plan

    def with_lasting(self, rate: float, period: int) -> ChunkPlan:
        """What is written at a smaller `rate` lasts for a period [tokens] only. Rate 0: all lasts."""
        return self._replace(lasting=Lasting(rate, period)) if rate else self

    def check(self) -> None:
        """Raise ValueError for a number of tokens below 1."""
        sizes = {f"local[{index}]": chunk for index, chunk in enumerate(self.local)}
        sizes |= {"global_size": self.global_size, "shard": 1 if self.shard is None else self.shard}
        sizes |= {"lasting.period": self.lasting.period} if self.lasting else {}
        for name, tokens in sizes.items():
            if tokens < 1:
                raise ValueError(f"plan.{name}={tokens}: must be >= 1")

    @property
    def each_token(self) -> ChunkPlan:
        """With chunk 1 for the local memories."""
        return self._replace(local=(1,) * len(self.local))


class MemoryMode(StrEnum):
    """The memory branch in a forward pass; all modes but `learn` are controls for probes."""

    learn = "learn"  # writes and reads
    frozen = "frozen"  # writes nothing, and reads the weights it has: from the start of a text the initial ones
    off = "off"  # recalls zeros, so that the gate depends on its bias alone
