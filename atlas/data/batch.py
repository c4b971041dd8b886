"""One training batch.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Totals(NamedTuple):
    """Numbers of a batch, most of which a loss is divided by. They are sums over rows, exact for loss weights of a few
    values."""

    rows: float
    recall: float  # rows
    text_weight: float  # sum of the loss weights of all targets of text rows
    recall_weight: float  # the same of recall rows
    tokens: int  # padding included

    @classmethod
    def sum(cls, parts: Iterable[Totals]) -> Totals:
        """The totals of a batch from those of its parts."""
        return cls(*map(sum, zip(*parts, strict=True)))


@dataclass(frozen=True)
class Batch:
    """B sequences of T tokens with the loss weight of every target and the role of every row."""

    inputs: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64: targets[:, t] is the token after inputs[:, t]
    weights: Tensor  # [B, T] float32: weight of each target in the loss, 0 = ignored
    # What the host asks of a batch stays on the CPU: a GPU would have to be waited for.
    recall: Tensor  # [B] bool: the row is a recall (needle) sequence
    fresh: Tensor  # [B] bool: the row does not continue the same row of the step before

    def __post_init__(self) -> None:
        """Raises `ValueError` for columns that do not fit each other: PyTorch would stretch weights [B, 1] or [T]."""
        rows, wanted = self.inputs.shape[:1], {"targets": self.inputs.shape, "weights": self.inputs.shape}
        for name, shape in (wanted | {"recall": rows, "fresh": rows}).items():
            column: Tensor = getattr(self, name)
            if column.shape != shape:
                raise ValueError(f"{name} of a batch: must be {list(shape)}, as its inputs, not {list(column.shape)}")
            if name in ("recall", "fresh") and column.dtype != torch.bool:
                raise ValueError(f"{name} of a batch: must be bool, not {column.dtype}")

    @classmethod
    def from_tokens(
        cls,
        tokens: NDArray[np.unsignedinteger[Any]],  # [B, T + 1]
        weights: NDArray[np.float32],  # [B, T]
        recall: NDArray[np.bool_],  # [B]
        fresh: NDArray[np.bool_],  # [B]
    ) -> Batch:
        """Cut sequences of T + 1 tokens into inputs and the targets one token later."""
        wide = torch.from_numpy(tokens.astype(np.int64))
        return cls(
            inputs=wide[:, :-1].contiguous(),
            targets=wide[:, 1:].contiguous(),
            weights=torch.from_numpy(weights),
            recall=torch.from_numpy(recall),
            fresh=torch.from_numpy(fresh),
        )

    def totals(self) -> Totals:
        weights = self.weights.double().sum(dim=1)
        recall_weight = weights[self.recall].sum().item()
        text_weight = weights[~self.recall].sum().item()
        return Totals(len(self.recall), self.recall.sum().item(), text_weight, recall_weight, self.inputs.numel())

    def to(self, device: torch.device | str) -> Batch:
        """With what the model and the loss read on the device. A copy from pinned memory is only started; what runs on
        the device next comes after it."""
        return self._with_tokens(lambda part: part.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """With what goes to the device in memory that a GPU reads by itself."""
        return self._with_tokens(Tensor.pin_memory)

    def _with_tokens(self, placed: Callable[[Tensor], Tensor]) -> Batch:
        inputs, targets, weights = map(placed, (self.inputs, self.targets, self.weights))
        return Batch(inputs, targets, weights, self.recall, self.fresh)

    def sequence_part(self, part: int, parts: int) -> Batch:
        """Part number `part` of every sequence, cut into `parts`, which must divide the number of tokens."""
        return self._with_tokens(lambda tokens: tokens.chunk(parts, dim=1)[part].contiguous())

    def split(self, parts: int) -> list[Batch]:
        """Cut into `parts` micro-batches of equally many rows, or one more, in row order."""
        sizes = sizes_of_parts(self.inputs.shape[0], parts)
        columns = [getattr(self, f.name).split(sizes) for f in fields(self)]
        return [Batch(*pieces) for pieces in zip(*columns, strict=True)]


def sizes_of_parts(rows: int, parts: int) -> list[int]:
    """Rows of each micro-batch. Raises `ValueError` where one would have none."""
    if not 1 <= parts <= rows:
        raise ValueError(f"parts={parts}: must be in [1, {rows}], the rows")
    return [rows * (part + 1) // parts - rows * part // parts for part in range(parts)]


def rows_of_batch(rows: range | None, batch_size: int) -> range:
    """The rows to make: all of the batch by default. Raises `ValueError` for rows that are not in it."""
    whole = range(batch_size)
    if rows is None:
        return whole
    if rows.step != 1 or not rows or rows[0] not in whole or rows[-1] not in whole:
        raise ValueError(f"rows={rows}: must be neighbours in {whole}")
    return rows
