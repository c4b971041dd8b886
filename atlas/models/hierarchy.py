"""Reading a stretch that starts anywhere in a period: resets at period starts, whole periods folded into the batch.

A period is a shard, or a chunk of the Q-K projection with range `chunk`.

Legend: B sequences, H heads, N = B * H rows, T tokens, L tokens of a period, n whole periods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atlas.ops.dual_form import cut_fields

State = TypeVar("State")
# Runs tensors [rows, T, ...] from a state with as many rows, to outputs [rows, T, d] and the next state.
Run = Callable[[State, tuple[Tensor, ...]], tuple[Tensor, State]]


class Piece(NamedTuple):
    """Part of a stretch that is read in one go."""

    tokens: tuple[Tensor, ...]  # [N, T, ...], or [N * n, L, ...] for whole periods
    fresh: bool  # starts from the initial state, not from the state before it
    periods: int = 1  # n

    @property
    def rows(self) -> int:
        return self.tokens[0].shape[0]

    def unfold(self, out: Tensor, state: State) -> tuple[Tensor, State]:
        """Output and state of the folded rows -> output [N, n * L, d], and the state after each row's last period."""
        if self.periods == 1:
            return out, state
        last: State = pytree.tree_map_only(Tensor, lambda leaf: leaf[self.periods - 1 :: self.periods], state)
        return out.unflatten(0, (-1, self.periods)).flatten(1, 2), last


def pieces(tokens: tuple[Tensor, ...], offset: int, period: int | None) -> Iterator[Piece]:
    """Split a stretch [N, T, ...] into: the rest of the open period, all whole periods, the start of the next one.

    The first token is number `offset` of its period. Whole periods do not depend on each other, so they are folded into
    the batch: [N, n * L, ...] -> [N * n, L, ...] (TNT section 4.1). `period=None` never resets.
    """
    if period is None:
        yield Piece(tokens, fresh=False)
        return
    total = tokens[0].shape[1]
    head = min(total, period - offset) if offset else 0
    end = total - (total - head) % period
    if head:
        yield Piece(cut_fields(tokens, lambda field: field[:, :head]), fresh=False)
    if end > head:
        whole = cut_fields(tokens, lambda field: field[:, head:end])
        folded = cut_fields(whole, lambda field: field.unflatten(1, (-1, period)).flatten(0, 1))
        yield Piece(folded, fresh=True, periods=(end - head) // period)
    if total > end:
        yield Piece(cut_fields(tokens, lambda field: field[:, end:]), fresh=True)


def run_periods(
    run: Run[State],
    initial: Callable[[int], State],
    state: State,
    tokens: tuple[Tensor, ...],
    offset: int,
    period: int | None,
) -> tuple[Tensor, State]:
    """Run over the pieces of a stretch; `initial(rows)` gives the state at the start of a period."""
    outputs: list[Tensor] = []
    for piece in pieces(tokens, offset, period):
        out, state = piece.unfold(*run(initial(piece.rows) if piece.fresh else state, piece.tokens))
        outputs.append(out)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state


def per_row(heads: Tensor, batch: int, rows: int) -> Tensor:
    """A value per head [H, ...] -> one per row [B * H * n, ...], for n = rows / (B * H) folded periods of each head."""
    periods = rows // (batch * heads.shape[0])
    # In two steps: the backward pass sums over the outermost dimension first, which is ten times faster than over both.
    of_heads = heads.unsqueeze(1).expand(-1, periods, *heads.shape[1:])
    return of_heads.expand(batch, *of_heads.shape).flatten(0, 2)
