"""Tensors into a folder, each rank its slices (torch.distributed.checkpoint)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save


def write(folder: Path, tensors: Mapping[str, Tensor], group: ProcessGroup | None) -> str:
    """Write and sync the files; returns why that did not work on some rank, or "". `group`: None for one process."""
    writer = FileSystemWriter(folder, sync_files=True, overwrite=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is wanted of one process
            save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        return next(f"{reason}" for reason, _ in error.failures.values())
    return ""
