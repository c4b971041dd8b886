"""A step on fixed memory is the step. A stand-in repeats the recorded work as a CUDA graph would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import atlas
from atlas.config import ConfigError, DebugConfig, DeviceConfig, RunConfig, Stage2Config, StepGraphs
from atlas.data.batch import Batch
from atlas.kernels import gpu
from atlas.parallel.ranks import Ranks
from atlas.runs.build import build_data, build_model, build_optimizer, graph_capture, prepare_device
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.step_graph import Done, StepGraph, fixed_inputs
from atlas.training.step_result import StepResult

CUDA = torch.device("cuda")
TEXT = Path(__file__).parents[3] / "docs" / "memory.md"
NEEDLES = {"pairs": 2, "queries": 2, "distance_min": 8, "sparse_pairs": 1, "sparse_queries": 1}
SETTINGS = [
    "model.width=16", "model.heads=2", "model.memory.hidden=8", "model.feedforward=16", "model.layers=1",
    "train.batch_size=4", "train.sequence=64", "chunk_size.shard=64", "chunk_size.global_size=64", "niah=off",
    "logger=none", "data=mixed", f"data.paths=[{TEXT}]", "train.steps=10",
    *(f"data.recall.{name}={value}" for name, value in NEEDLES.items()),
]  # fmt: skip
STEPS = 6


@pytest.fixture(autouse=True)
def graphs_are_tried() -> Iterator[None]:
    yield
    gpu._selection.graphless, gpu._selection.untold = "", []


class Repeating:
    """Does the recorded work again on the same memory, results and gradients included."""

    def __init__(self, *, stale: bool = False) -> None:
        self.recorded = self.replayed = 0
        self.model: nn.Module | None = None
        self.stale = stale  # a graph that is wrong: it keeps the numbers that it was recorded with

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        assert self.model is not None
        parameters = list(self.model.parameters())
        found, self.recorded = work(), self.recorded + 1
        gradients = [parameter.grad for parameter in parameters]

        def replay() -> None:
            self.replayed += 1
            if self.stale:
                return
            for kept, made in zip(pytree.tree_leaves(found), pytree.tree_leaves(work()), strict=True):
                kept.copy_(made)
            for kept, parameter in zip(gradients, parameters, strict=True):
                if kept is not None:
                    kept.copy_(parameter.grad)

        return found, replay


def two_processes() -> Ranks:
    ranks = Ranks()
    ranks.world = 2
    return ranks


def train(config: RunConfig, capture: Repeating | None = None, rows: int | None = None) -> list[StepResult]:
    """Step 5 has hooks. `rows`: of each batch, None = all."""
    model, data = build_model(config), build_data(config)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    if capture is not None:
        capture.model = model
    step = TrainStep(config.train, torch.device("cpu"), torch.float32, capture=capture)
    batches = [data.batch(number) for number in range(1, STEPS + 1)]
    cut = [Batch(*(column[:rows] for column in vars(batch).values())) for batch in batches]
    return [step(state, batch, hooked=number == 5) for number, batch in enumerate(cut, start=1)]


def compare(found: list[StepResult], wanted: list[StepResult]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        for name in ("loss", "text", "recall", "gradient_norm", "polarisation", "lr"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-4, nan_ok=True), name
        assert list(ours.gates or ()) == pytest.approx(list(theirs.gates or ()), rel=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [[], *(pytest.param([text], marks=pytest.mark.slow) for text in ("train.accumulate=2", "model=attention_only"))],
)
def test_replayed_steps_train_as_steps_do(overrides: list[str]) -> None:
    config, capture = atlas.compose([*SETTINGS, *overrides]), Repeating()
    compare(train(config, capture), train(config))
    assert (capture.recorded, capture.replayed) == (1, 3)  # steps 3, 4 and 6
    assert gpu.news() == []


def test_fixed_memory_is_cut_into_the_micro_batches_of_the_batch() -> None:
    for rows in (8, 9, 11):
        tokens, flags = torch.arange(rows * 2).view(rows, 2), torch.zeros(rows, dtype=torch.bool)
        batch = Batch(tokens, tokens + 1, tokens.float(), flags, flags)
        given = fixed_inputs(batch, batch.totals(), 0.0)
        for ours, theirs in zip(given.split(4), batch.split(4), strict=True):
            pairs = zip(ours[:3], (theirs.inputs, theirs.targets, theirs.weights), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
            assert ours.shares.shape == (3, len(theirs.inputs))


@pytest.mark.slow
def test_rows_that_are_no_multiple_of_the_micro_batches_are_cut_as_without_a_graph() -> None:
    config = atlas.compose([*SETTINGS, "train.accumulate=2"])
    compare(train(config, Repeating(), rows=3), train(config, rows=3))


@pytest.mark.slow
def test_a_graph_that_keeps_the_numbers_of_a_batch_is_given_up_and_told_once() -> None:
    config = atlas.compose(SETTINGS)
    compare(train(config, Repeating(stale=True)), train(config))
    (said,) = gpu.news()
    assert said.startswith("the CUDA graph of a step was given up: RuntimeError: it gives [")
    assert said.endswith("]; the kernels are launched one by one")
    assert gpu.description().endswith(f", no CUDA graph ({gpu._selection.graphless})")


@pytest.mark.slow
def test_a_step_that_cannot_be_recorded_runs_without_a_graph() -> None:
    class Failing(Repeating):
        def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    config = atlas.compose(SETTINGS)
    compare(train(config, Failing()), train(config))
    assert gpu.news() == [
        "the CUDA graph of a step was given up: RuntimeError: operation not permitted when stream is capturing; "
        "the kernels are launched one by one"
    ]


@pytest.mark.slow
def test_without_room_beside_the_graph_steps_run_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config, work = atlas.compose(SETTINGS), StepGraph._work
    wanted = train(config)

    def without_room(graph: StepGraph) -> Done:
        if graph._recorded is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(graph)

    monkeypatch.setattr(StepGraph, "_work", without_room)
    compare(train(config, Repeating()), wanted)
    assert gpu.news() == [
        "the CUDA graph of a step was given up: OutOfMemoryError: CUDA out of memory; "
        "the kernels are launched one by one"
    ]


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_seen() -> None:
    config, capture = atlas.compose(SETTINGS), Repeating()
    model, data = build_model(config), build_data(config)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    capture.model = model
    step = TrainStep(config.train, torch.device("cpu"), torch.float32, capture=capture)
    found = [step(state, data.batch(number)) for number in range(1, 6)]
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    assert [one.finite for one in (*found, step(state, data.batch(6)))] == [True] * 5 + [False]
    assert capture.replayed == 4


def test_auto_records_on_a_gpu_where_a_graph_is_right() -> None:
    config, cpu = atlas.compose(SETTINGS), torch.device("cpu")
    assert graph_capture(config, CUDA) is gpu.cuda_capture
    assert graph_capture(config, cpu) is None
    assert graph_capture(config, CUDA, two_processes()) is None
    assert graph_capture(replace(config, train=replace(config.train, carry_memory=True)), CUDA) is None
    assert graph_capture(replace(config, debug=DebugConfig("nan_gradient@3")), CUDA) is None
    assert graph_capture(replace(config, stage2=Stage2Config(enabled=True, start=1)), CUDA) is None
    assert graph_capture(replace(config, device=DeviceConfig(graph=StepGraphs.never)), CUDA) is None
    assert graph_capture(replace(config, device=DeviceConfig(graph=StepGraphs.always)), CUDA) is gpu.cuda_capture


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["train.carry_memory=true"], "train.carry_memory=true: a graph repeats the positions that it was recorded at"),
        (["debug.inject=nan_loss@3"], "debug.inject: a graph does not run the hooks of a fault"),
    ],
    ids=["carry_memory", "inject"],
)
def test_a_graph_is_refused_where_it_would_be_wrong(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        atlas.compose([*SETTINGS, "device.graph=always", *overrides])
    assert str(error.value) == f"device.graph=always: must be auto or never with {reason}"


def test_a_graph_is_refused_on_a_cpu_and_for_several_processes() -> None:
    with pytest.raises(ConfigError, match=r"^device.graph=always: must be auto or never on a CPU$"):
        prepare_device(DeviceConfig(kind="cpu", graph=StepGraphs.always))  # type: ignore[arg-type]
    config = atlas.compose([*SETTINGS, "device.graph=always"])
    with pytest.raises(ConfigError) as error:
        graph_capture(config, CUDA, two_processes())
    assert str(error.value) == (
        "device.graph=always: must be auto or never with several processes: "
        "hooks sum the gradients, and a graph does not run hooks"
    )
