"""What rank 0 records of the batches that several processes train on together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch

from atlas.config import ParallelConfig, RollbackConfig, WatchConfig
from atlas.data.batch import Batch
from atlas.parallel.ranks import Ranks
from atlas.training.step_result import StepResult
from atlas.training.watchers import JUDGES
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.record import Record
from atlas.training.watchers.watchers import Watchers

T = TypeVar("T")
ROWS, TOKENS = 4, 64  # of rank 0
RESULT = StepResult(3.0, 3.0, 3.0, 1.0, 0.0, 1.0, True, None, 0.0, 1.0, 0, [3.0] * ROWS)


class Several(Ranks):
    """The other ranks have other rows; only digests are gathered."""

    def __init__(self, world: int) -> None:
        self.world = world

    def gather(self, value: T) -> list[T]:
        others: list[Any] = [hash((value, rank)) for rank in range(1, self.world)]
        return [value, *others]


def recorded(world: int, steps: int, period: int, text: int) -> Record:
    """Of `steps` steps of a source that begins again after `period` of them."""
    record = Record(Facts(steps=1000, sequence=TOKENS, tokens=world * ROWS * TOKENS, text=text))
    optimizer = SimpleNamespace(lr=1.0, scale=1.0, burst=1.0)
    state: Any = SimpleNamespace(
        step=0, ranks=Several(world), record=record, optimizer=optimizer, model=torch.nn.Linear(1, 1)
    )
    config: Any = SimpleNamespace(data={}, watch=WatchConfig(), rollback=RollbackConfig(), parallel=ParallelConfig())
    telemetry: Any = None
    watchers = Watchers(config, state, telemetry)
    for state.step in range(1, steps + 1):
        generator = torch.Generator().manual_seed(state.step % period)
        inputs, targets = torch.randint(256, (2, ROWS, TOKENS), generator=generator)
        flags = torch.zeros(ROWS, dtype=torch.bool)
        record.step = state.step
        watchers.see_step(RESULT, Batch(inputs, targets, torch.ones(ROWS, TOKENS), flags, ~flags), 0.1)
    return record


@pytest.mark.parametrize("world", [1, 2])
def test_data_that_repeat_every_three_steps_are_told_as_such(world: int) -> None:
    """Also where the processes compare their rows at one step in ten."""
    found = JUDGES["repeated_batch"](recorded(world, steps=40, period=3, text=world * ROWS * TOKENS * 24))
    assert found is not None
    assert found.value == 3


@pytest.mark.parametrize("world", [1, 8])
def test_a_second_pass_over_the_text_may_read_its_rows_again(world: int) -> None:
    """Each process reads its share of a text that is read in order."""
    period = 20
    record = recorded(world, steps=3 * period, period=period, text=world * ROWS * TOKENS * period)
    assert JUDGES["rows_again"](record) is None
