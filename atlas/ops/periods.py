"""Cutting a stretch of tokens on a periodic grid (chunks, shards), wherever the stretch starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from torch import Tensor

Cut = TypeVar("Cut")


class Periods(NamedTuple):
    """A stretch as the rest of an open period, then whole periods, then the start of a new one. Units: tokens."""

    head: int  # tokens that belong to the period already open; 0 if none is open
    whole: int  # tokens of whole periods, a multiple of the period
    tail: int  # tokens of a last, unfinished period


def split_periods(tokens: int, offset: int, period: int) -> Periods:
    """Split `tokens` whose first one is number `offset` of its period (0 <= offset < period)."""
    head = min(tokens, period - offset) if offset else 0
    tail = (tokens - head) % period
    return Periods(head, tokens - head - tail, tail)


def cut_fields(fields: Iterable[Tensor], cut: Callable[[Tensor], Cut]) -> tuple[Cut, ...]:
    """`cut` of every field; a field that occurs twice (features of degree 1 are the keys) is cut once, so that the
    backward pass joins the gradients of its pieces once."""
    fields = tuple(fields)
    done = {id(field): cut(field) for field in {id(field): field for field in fields}.values()}
    return tuple(done[id(field)] for field in fields)
