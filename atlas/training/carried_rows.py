"""Rows of a batch that go on with the memories of earlier ones, and rows that begin anew.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from atlas.models.language_model import ModelState

Output = TypeVar("Output")


def restart_rows(carried: Sequence[ModelState], fresh: Tensor) -> list[ModelState | None]:
    """The state that each row continues from; None where `fresh` [B] is true, and for all rows if none is carried.

    `carried` holds the states of all rows in order, in batches of any size.
    """
    rows = [row for state in carried for row in state.split()]
    if not rows:
        return [None] * len(fresh)
    return [None if restarts else row for row, restarts in zip(rows, fresh.tolist(), strict=True)]


def run_rows(
    model: Callable[[Tensor, ModelState | None], Output], tokens: Tensor, before: Sequence[ModelState | None]
) -> list[Output]:
    """Run the model, or its `read`, on tokens [B, T] whose rows are at different positions -> outputs in row order.

    Neighbouring rows at the same position are run together. A row without a state is a new sequence.
    """
    outputs, first = [], 0
    for _, group in groupby(before, lambda state: state and state.counters):
        rows = list(group)
        states = [state for state in rows if state is not None]
        outputs.append(model(tokens[first : first + len(rows)], ModelState.join(states) if states else None))
        first += len(rows)
    return outputs


def join(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))
