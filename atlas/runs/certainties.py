"""What settings and data make certain before step 1, such as a task that cannot be solved."""

from __future__ import annotations

from math import inf

import numpy as np

from atlas.config import RunConfig
from atlas.data.layout import random_layout
from atlas.data.mixed import RecallAndText
from atlas.data.recall import RecallData, RecallTask
from atlas.data.source import DataSource
from atlas.data.tokens import TokenData

MOST_PADDING = 0.5  # of the tokens of a batch
FEWEST_QUESTIONS = 0.5  # share of those that are asked for
SAMPLE = 64  # sequences


def certainties(config: RunConfig, data: DataSource) -> list[str]:
    """What a user should know before training with these settings on these data, a sentence each."""
    found = _of_memories(config) if config.model.memory.enabled else []
    asks = isinstance(data, RecallData) or (isinstance(data, RecallAndText) and max(data.share.start, data.share.end))
    if asks and isinstance(data, RecallData | RecallAndText):
        found += _of_recall(config, data.task)
    if isinstance(data, TokenData) and data.documents == "separate" and data.padding > MOST_PADDING:
        short = "documents are short beside train.sequence, and data.documents=separate gives each a row of its own"
        found.append(f"{data.padding:.0%} of the tokens of a batch are padding: {short}")
    return found


def _of_memories(config: RunConfig) -> list[str]:
    sizes, sequence, found = config.chunk_size, config.train.sequence, list[str]()
    shard, whole = sizes.shard, sizes.global_size
    if min(sizes.local) >= shard:
        found.append(f"local memories are reset after every chunk (chunk_size.shard={shard}): they carry nothing on")
    if not config.model.memory.use_global:
        return found
    if shard >= sequence:
        later = f"a text of more than {shard} tokens resets them, which training never shows the model"
        found.append(
            f"local memories are never reset within train.sequence={sequence} (chunk_size.shard={shard}): {later}"
        )
    if whole >= sequence and not config.train.carry_memory:
        found.append(
            f"the global memory is written at the end of a sequence alone and never read"
            f" (chunk_size.global_size={whole}, train.sequence={sequence})"
        )
    return found


def _of_recall(config: RunConfig, task: RecallTask) -> list[str]:
    model, sizes, sequence, found = config.model, config.chunk_size, config.train.sequence, list[str]()
    if model.memory.enabled:
        reach = model.layers * (model.window - 1) if model.window else inf
        if task.distance_min < reach:
            seen = (
                f"attention reaches {reach:g} tokens back (model.layers * (model.window - 1))"
                if model.window
                else ("attention sees the whole sequence (model.window=0)")
            )
            found.append(
                f"{seen}, and questions are asked from data.recall.distance_min={task.distance_min} tokens on:"
                " recall can be solved without the memory and does not show whether it is used"
            )
        lasting = model.memory.use_global and sizes.global_size < sequence
        if not lasting and sizes.shard <= task.distance_min:
            found.append(
                f"recall cannot be solved: local memories are reset every {sizes.shard} tokens, questions are asked"
                f" from data.recall.distance_min={task.distance_min} tokens on, and no global memory is read in between"
            )
    asked, wanted = _questions(task, sequence)
    if asked < FEWEST_QUESTIONS * wanted:
        found.append(
            f"a recall sequence has {asked:.1f} questions instead of {wanted:.1f}: with"
            f" data.recall.distance_min={task.distance_min} the others find no room in train.sequence={sequence}"
        )
    return found


def _questions(task: RecallTask, sequence: int) -> tuple[float, float]:
    """Questions that a sequence has at full distances, and those that the task names: means over both kinds."""
    rng = np.random.default_rng(0)
    asked = wanted = 0.0
    kinds = (
        (1 - task.sparse_share, task.pairs, task.queries),
        (task.sparse_share, task.sparse_pairs, task.sparse_queries),
    )
    for share, pairs, queries in kinds:
        sizes = {"slot": task.format.slot, "pairs": pairs, "queries": queries}
        _, shown = random_layout(rng, SAMPLE, sequence, **sizes, distance_min=task.distance_min, distance_max=sequence)
        needles = np.array([len(np.unique(row[row >= 0])) for row in shown])
        asked += share * float(((shown >= 0).sum(axis=1) - needles).mean())
        wanted += share * queries
    return asked, wanted
