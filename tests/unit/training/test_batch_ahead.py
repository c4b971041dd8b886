"""A batch made ahead is the batch that was asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from atlas.data.source import DataSource
from atlas.training.batch_ahead import BatchAhead

GPU = torch.device("cuda")


@dataclass(frozen=True)
class Numbered:
    """Stands for the batch of a number."""

    number: int

    def pinned(self) -> Numbered:
        return self


@dataclass
class Source:
    made: list[int] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def batch(self, step: int) -> Numbered:
        if step == 99:
            raise ValueError("no batch 99")
        self.made.append(step)
        self.threads.add(threading.current_thread().name)
        return Numbered(step)


def start(device: torch.device) -> tuple[Source, BatchAhead]:
    source = Source()
    return source, BatchAhead(cast(DataSource, cast(Any, source)), device)


def test_the_next_batch_is_made_by_one_thread() -> None:
    source, ahead = start(GPU)
    taken = [ahead.take(number) for number in (1, 2, 5, 6, 3)]  # a rollback leaves batches out, or goes back
    ahead.close()
    assert taken == [Numbered(number) for number in (1, 2, 5, 6, 3)]
    assert [number for number in source.made if number in (1, 2, 5, 6, 3)][:2] == [1, 2]
    assert len(source.threads) == 1
    assert threading.current_thread().name not in source.threads


def test_an_error_is_raised_where_the_batch_is_taken() -> None:
    _, ahead = start(GPU)
    assert ahead.take(98) == Numbered(98)  # 99 fails meanwhile
    with pytest.raises(ValueError, match="no batch 99"):
        ahead.take(99)
    ahead.close()


def test_on_a_cpu_nothing_is_made_ahead() -> None:
    source, ahead = start(torch.device("cpu"))
    assert ahead.take(1) == Numbered(1)
    ahead.close()
    assert source.made == [1]
    assert source.threads == {threading.current_thread().name}
