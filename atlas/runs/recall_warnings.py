"""A recall task that cannot be solved, or that says nothing of the memory, is told before step 1."""

from __future__ import annotations

from math import inf

import numpy as np

from atlas.config import RunConfig
from atlas.data.layout import random_layout
from atlas.data.mixed import RecallAndText
from atlas.data.recall import RecallData, RecallTask
from atlas.data.source import DataSource

FEWEST_QUESTIONS = 0.15  # share of those that the task names; with the distances of atlas_125m it is 0.28
SAMPLE = 64  # sequences


def recall_warnings(config: RunConfig, data: DataSource) -> list[str]:
    """What a user should know of the recall task before training, a sentence each; [] for data without one."""
    if isinstance(data, RecallAndText) and not max(data.share.start, data.share.end):
        return []
    return _of_task(config, data.recall) if isinstance(data, RecallData | RecallAndText) else []


def _of_task(config: RunConfig, task: RecallTask) -> list[str]:
    model, sizes, sequence, found = config.model, config.chunk_size, config.train.sequence, list[str]()
    if model.memory.enabled:
        reach = model.layers * (model.window - 1) if model.window else inf
        if task.distance_min < reach:
            seen = "attention sees the whole sequence (model.window=0)"
            if model.window:
                seen = f"attention reaches {reach:g} tokens back (model.layers * (model.window - 1))"
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
