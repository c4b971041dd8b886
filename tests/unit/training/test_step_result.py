"""The numbers of a step of several processes."""

from __future__ import annotations

from typing import TypeVar

import torch

import atlas
from atlas.data.batch import Batch, Totals
from atlas.parallel.ranks import Ranks
from atlas.runs.build import build_model, build_optimizer
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep

T = TypeVar("T")
SETTINGS = (
    "model.width=16", "model.heads=2", "model.feedforward=12", "model.layers=1", "model.persistent_keys=4",
    "model.memory.hidden=6", "train.sequence=128", "train.batch_size=2", "data=text", "niah=off", "logger=none",
)  # fmt: skip


class Longer(Ranks):
    """As if there were another rank, whose rows have 1000 tokens more."""

    def gather(self, value: T) -> list[T]:
        assert isinstance(value, Totals)
        return [value, value._replace(tokens=value.tokens + 1000)]


def test_the_tokens_of_a_step_are_those_of_all_ranks() -> None:
    """Where a row is a document, the rows of each are as long as its longest one."""
    config = atlas.compose(SETTINGS)
    model = build_model(config)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    step = TrainStep(config.train, torch.device("cpu"), torch.float32, Longer())
    batch = Batch(*torch.randint(256, (2, 2, 128)), torch.ones(2, 128), *torch.tensor([[False, False], [True, True]]))
    assert step(state, batch).tokens == state.tokens == 2 * (2 * 128) + 1000
