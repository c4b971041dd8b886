"""The state of a run of several processes."""

from __future__ import annotations

import random

import numpy as np
import torch

import atlas
from atlas.parallel.ranks import Ranks
from atlas.runs.build import build_model, build_optimizer
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rng import seed_rng
from atlas.training.rollback.history import History
from atlas.training.state import TrainState

SETTINGS = (
    "model.width=16", "model.heads=2", "model.feedforward=12", "model.layers=1", "model.persistent_keys=4",
    "model.memory.hidden=6", "niah=off", "logger=none",
)  # fmt: skip


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.random()), random.random()


def test_restored_generators_of_each_rank_differ_and_rank_0_goes_on() -> None:
    """As at the start of a run: dropout of the user's has another mask for each row."""
    config = atlas.compose(SETTINGS)
    model, ranks = build_model(config), Ranks()
    monitor, history = GateMonitor(config.train.gate), History(config.rollback)
    state = TrainState(model, build_optimizer(config, model), monitor, history, ranks=ranks)
    seed_rng(3)
    payload = state.payload()
    wanted, found = drawn(), []
    for ranks.rank in (0, 1, 2, 2):
        state.restore(payload)
        found.append(drawn())
    assert found[0] == wanted
    assert found[2] == found[3]  # a function of the checkpoint
    assert [len({numbers[kind] for numbers in found}) for kind in range(3)] == [3, 3, 3]
