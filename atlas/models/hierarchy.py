"""Running a memory over a stretch that starts anywhere in a shard: resets, and shards folded into the batch.

Legend: B sequences, H heads, N = B * H rows, n shards, T tokens, S period (shard or chunk).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atlas.ops.periods import cut_fields, split_periods

State = TypeVar("State")
# Runs tensors [rows, T, ...] from a state with as many rows, to outputs [rows, T, d] and the next state.
Run = Callable[[State, tuple[Tensor, ...]], tuple[Tensor, State]]


def run_periods(
    run: Run[State],
    initial: Callable[[int], State],
    state: State,
    tokens: tuple[Tensor, ...],
    offset: int,
    period: int | None,
) -> tuple[Tensor, State]:
    """Run over a stretch [N, T, ...] whose first token is number `offset` of its period; periods start from `initial`.

    Whole periods know nothing of each other, so they are folded into the batch: [N, n * S, ...] -> [N * n, S, ...]
    (TNT section 4.1). `period=None` never starts anew.
    """
    if period is None:
        return run(state, tokens)
    rows = tokens[0].shape[0]
    head, whole, tail = split_periods(tokens[0].shape[1], offset, period)
    outputs: list[Tensor] = []
    if head:
        out, state = run(state, cut_fields(tokens, lambda field: field[:, :head]))
        outputs.append(out)
    if whole:
        middle = cut_fields(tokens, lambda field: field[:, head : head + whole])
        folded = cut_fields(middle, lambda field: field.unflatten(1, (-1, period)).flatten(0, 1))
        out, folded_state = run(initial(folded[0].shape[0]), folded)
        outputs.append(out.unflatten(0, (rows, -1)).flatten(1, 2))
        state = _last_period(folded_state, whole // period)
    if tail:
        out, state = run(initial(rows), cut_fields(tokens, lambda field: field[:, head + whole :]))
        outputs.append(out)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state


def _last_period(state: State, periods: int) -> State:
    """The state of the last of the `periods` folded periods of every row."""
    last: State = pytree.tree_map_only(Tensor, lambda leaf: leaf[periods - 1 :: periods], state)
    return last


def per_row(heads: Tensor, batch: int, rows: int) -> Tensor:
    """A value per head [H, ...] -> one per row [B * H * n, ...], for n = rows / (B * H) folded periods of each head."""
    periods = rows // (batch * heads.shape[0])
    shape = (batch, heads.shape[0], periods, *heads.shape[1:])
    return heads.unsqueeze(1).unsqueeze(0).expand(shape).flatten(0, 2)
