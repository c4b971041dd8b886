"""Compiled blocks train as the others do, and nothing breaks their graph."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

import atlas
from atlas.config import ConfigError
from atlas.config.arguments import read_device
from atlas.runs.build import build_data, build_model, build_optimizer, prepare_device
from atlas.training import compiled
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep

TEXT = Path(__file__).parents[3] / "docs" / "memory.md"
SETTINGS = [
    "model.width=32", "model.heads=2", "model.memory.hidden=16", "model.feedforward=32", "model.layers=1",
    "train.batch_size=2", "train.sequence=32", "chunk_size.shard=32", "chunk_size.global_size=32", "niah=off",
    "logger=none", "data=text", f"data.paths=[{TEXT}]", "device=cpu",
]  # fmt: skip
CASES = {
    "kernels": ["model.layers=3", "model.memory.rule=momentum"],
    "operations": ["device.kernels=torch", "device.precision=bf16"],
    "recomputed": ["model.memory.rule=muon", "model.memory.recompute=true"],
    "windows": ["model.memory.rule=omega", "model.memory.qk_projection.range=chunk"],
}


def losses(overrides: list[str], *, compiled: bool, steps: int = 3) -> list[float]:
    """Losses and gradient norms of the first steps."""
    config = atlas.compose([*SETTINGS, *overrides])
    device, precision = prepare_device(config.device)
    model, data = build_model(config), build_data(config)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    step = TrainStep(config.train, device, precision, compiled=compiled)
    found = [step(state, data.batch(number)) for number in range(1, steps + 1)]
    return [number for result in found for number in (result.loss, result.gradient_norm)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_blocks_train_as_the_others(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters = import_module("torch._dynamo.utils").counters  # seconds to import
    counters.clear()
    found, wanted = (losses(CASES[case], compiled=one) for one in (True, False))
    assert found == pytest.approx(wanted, rel=1e-4)
    assert counters["stats"]["unique_graphs"] == (
        2 if case == "kernels" else 1
    )  # the first of 3 layers makes the angles
    assert not counters["graph_break"]


def test_it_is_refused_where_nothing_is_trained() -> None:
    with pytest.raises(ConfigError) as error:
        read_device(["device.compile=true"])
    assert str(error.value) == "device.compile=true: must be left out: blocks are compiled for training alone"
