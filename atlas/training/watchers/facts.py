"""What watchers know before step 1. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log

from atlas.config import Fusion, RunConfig


@dataclass(frozen=True)
class Facts:
    """Losses in nats per token; lengths in tokens."""

    steps: int
    warmup: int = 0  # steps of the learning rate's warm-up
    uniform: float = 0.0  # loss of a uniform guess
    width: int = 0  # of the model
    head_width: int = 0
    baseline: float | None = None  # loss of a model without memory on the validation text
    baseline_name: str = "bigram baseline"
    clip: float = 0.0  # train.gradient_clip; 0 = off
    memory: bool = False
    has_global: bool = False
    gated: bool = False  # the fusion has a gate
    carries: bool = False  # train.carry_memory
    sequence: int = 0
    shard: int = 0
    global_size: int = 0
    largest_local: int = 0  # chunk
    tokens: int = 0  # of a step
    watched: int = 0  # tokens of the watched rows; 0 = unknown
    text: int = 0  # tokens of the training text; 0 = unknown
    first_step: int = 0  # of this start: the steps done before it
    given_weights: bool = False  # by init_from
    unused: tuple[str, ...] = ()  # parts of the names of parameters that most steps do not use


def facts_of(config: RunConfig, baseline: float | None, first_step: int, text: int, name: str) -> Facts:
    """What is known before step 1. `text`: tokens of the training text, 0 where there is none; `name`: of the
    baseline."""
    memory, chunks = config.model.memory, config.chunk_size
    additive = config.model.fusion is Fusion.additive
    unused = {  # the global W_init only where a row begins; the sharpness by a gate
        ".global_memory.": config.train.carry_memory,
        ".log_sharpness": additive,
    }
    warmup = config.optim.get("warmup", 0)
    return Facts(
        steps=config.train.steps,
        warmup=warmup if isinstance(warmup, int) else 0,
        uniform=log(config.model.vocabulary),
        width=config.model.width,
        head_width=config.model.width // config.model.heads,
        baseline=baseline if baseline is not None and isfinite(baseline) else None,
        baseline_name=name,
        clip=0.0 if config.stage2.enabled else config.train.gradient_clip,  # there the limit changes
        memory=memory.enabled,
        has_global=memory.enabled and memory.use_global,
        gated=memory.enabled and not additive,
        carries=config.train.carry_memory,
        sequence=config.train.sequence,
        shard=chunks.shard,
        global_size=chunks.global_size,
        largest_local=max(chunks.local),
        tokens=config.train.batch_size * config.train.sequence,
        watched=min(config.rollback.watch_rows, config.train.batch_size) * config.train.sequence,
        text=text,
        first_step=first_step,
        given_weights=config.init_from is not None,
        unused=tuple(part for part, holds in unused.items() if holds),
    )
