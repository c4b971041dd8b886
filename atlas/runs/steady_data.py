"""Whether a data source keeps its promise: a batch is a function of its step alone. Asked before step 1."""

from __future__ import annotations

from torch import Tensor

from atlas.data.batch import Batch
from atlas.data.source import DataSource


def data_warnings(data: DataSource, step: int) -> list[str]:
    """A sentence for each kind of batch that differs when it is asked for again; `step`: the first to be trained."""
    found = []
    if not _same(data.batch(step), data.batch(step)):
        found.append(
            f"the data source gives another batch when it is asked for that of step {step} again: a run that is resumed"
            " or rolled back will read other batches"
        )
    if not _same(data.validation(0), data.validation(0)):
        found.append(
            "the data source gives another validation batch when it is asked again: the losses of two validations"
            " cannot be compared"
        )
    return found


def _same(one: Batch, other: Batch) -> bool:
    pairs: list[tuple[Tensor, Tensor]] = list(zip(vars(one).values(), vars(other).values(), strict=True))
    return all(a.shape == b.shape and bool((a == b).all()) for a, b in pairs)
