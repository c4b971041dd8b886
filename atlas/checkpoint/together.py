"""A checkpoint of layout `sharded`: every rank writes its slices, rank 0 the rest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from atlas.checkpoint.manager import CheckpointManager, SavedCheckpoint
from atlas.checkpoint.manifest import TENSORS
from atlas.checkpoint.tensor_files import hashes, take_apart
from atlas.parallel.ranks import Ranks


def save_together(
    checkpoints: CheckpointManager,
    step: int,
    payload: dict[str, Any],
    health: Mapping[str, float | bool | None],
    ranks: Ranks,
) -> SavedCheckpoint:
    """As `CheckpointManager.save`; every rank calls it. Raises `CheckpointError` on every rank."""
    began = time.perf_counter()
    plain, tensors = take_apart(payload)
    temporary = ranks.from_first(lambda: checkpoints.begin(step))
    folder, files = temporary / TENSORS, dict[str, tuple[int, str]]()
    failure = ranks.write_tensors(folder, tensors)
    try:
        files = {} if failure else hashes(folder, ranks.rank, first=ranks.first)
    except OSError as error:
        failure = str(error.strerror)
    failures, of_ranks = zip(*ranks.gather((failure, files)), strict=True)
    every = {name: list(pair) for found in of_ranks for name, pair in found.items()}

    def end() -> SavedCheckpoint:
        try:
            if failed := next(filter(None, failures), ""):
                raise checkpoints.not_saved(step, failed)
            saved = checkpoints.end(temporary, step, plain, health, every)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return replace(saved, seconds=time.perf_counter() - began)

    return ranks.from_first(end)
