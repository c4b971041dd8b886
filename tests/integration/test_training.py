"""One run as a whole: determinism, the step, carried memory, the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import atlas
from atlas.config import RunConfig
from atlas.data.batch import Batch
from atlas.runs.build import build_data, build_model, build_optimizer
from atlas.runs.summary import RunSummary
from atlas.training.gate_monitor import GateMonitor
from atlas.training.losses import mean_losses
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep


def start(config: RunConfig) -> tuple[TrainState, TrainStep]:
    model = build_model(config)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    return state, TrainStep(config.train, torch.device("cpu"), torch.float32)


@pytest.mark.slow
def test_two_runs_of_one_seed_are_the_same(
    tiny: Any, undisturbed: RunSummary, tmp_path: Path, left: Any, same_state: Any
) -> None:
    first, second = (left(Path(run.folder)) for run in (undisturbed, atlas.train(tiny(), tmp_path / "again")))
    assert first.rows == second.rows
    assert [row["step"] for row in first.rows] == [5, 10, 15, 20, 25, 30]
    assert same_state(first.state, second.state)
    other = left(Path(atlas.train(tiny("seed=1"), tmp_path / "c").folder))
    assert first.rows[-1]["loss"] != other.rows[-1]["loss"]


@pytest.mark.slow
def test_a_fusion_without_a_gate_reports_none(
    tiny: Any, tmp_path: Path, left: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = atlas.train(tiny("model.fusion=additive", "train.steps=10"), tmp_path / "run")
    assert (summary.gate_mean, summary.gate_std, summary.gate_polarised) == (None, None, None)
    for row in left(tmp_path / "run").rows:
        assert [row[f"gate/{name}"] for name in ("mean", "std", "polarised")] == [None] * 3
        assert row["loss/polarisation"] == 0
        assert not any(name.endswith("gate_mean") for name in row)
        assert row["memory/layer0/global/rate"] is not None
    assert "\n  gates " not in capsys.readouterr().out


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nothing_is_updated_with_a_loss_or_gradient_that_is_not_finite(tiny: Any, same_state: Any, where: str) -> None:
    config = tiny("train.carry_memory=true")
    data = build_data(config)
    state, step = start(config)
    assert step(state, data.batch(1)).finite is True
    before = {key: value for key, value in state.payload().items() if key != "rng"}
    frozen = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, before)
    batch = data.batch(2)
    if where == "loss":
        batch = Batch(batch.inputs, batch.targets, batch.weights * float("nan"), batch.recall, batch.fresh)
    else:
        state.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    assert step(state, batch).finite is False
    after = {key: value for key, value in state.payload().items() if key != "rng"}
    assert same_state(after, frozen)


def test_micro_batches_give_the_gradient_and_the_losses_of_the_whole_batch(tiny: Any) -> None:
    mixed = ["data=mixed", "data.recall.pairs=2", "data.recall.queries=4", "data.recall.distance_min=8"]
    mixed += ["data.recall.sparse_pairs=1", "data.recall.sparse_queries=1"]  # rows of unequal weight
    found = []
    for parts in (1, 2, 4):
        config = tiny("train.gradient_clip=0", f"train.accumulate={parts}")
        config.data = atlas.compose(mixed).data | {"paths": config.data["paths"], "recall_share_start": 0.75}
        state, step = start(config)
        result = step(state, build_data(config).batch(1))
        gradient = torch.cat([p.grad.flatten() for p in state.model.parameters() if p.grad is not None])
        found.append((gradient, torch.tensor([result.loss, result.text, result.recall, result.gradient_norm])))
    for gradient, numbers in found[1:]:
        torch.testing.assert_close(gradient, found[0][0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(numbers, found[0][1], rtol=1e-5, atol=1e-6)


def test_a_carried_segment_continues_and_a_fresh_row_starts_anew(tiny: Any) -> None:
    config = tiny("train.carry_memory=true", "train.batch_size=2", "train.gradient_clip=0")
    state, step = start(config)
    state.optimizer.scale = 0.0  # the weights stay
    tokens = np.random.default_rng(0).integers(0, 256, (2, 129), dtype=np.uint8)
    ones, no = np.ones((2, 64), dtype=np.float32), np.zeros(2, dtype=np.bool_)
    first = Batch.from_tokens(tokens[:, :65], ones, no, ~no)
    second = Batch.from_tokens(tokens[:, 64:], ones, no, np.array([False, True]))
    step(state, first)
    loss = step(state, second).loss
    wide = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        continued = state.model(wide[:1, :128]).logits[:, 64:]
        alone = state.model(wide[1:, 64:128]).logits
    expected = F.cross_entropy(torch.cat((continued, alone)).flatten(0, 1), wide[:, 65:].flatten())
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():
        forgotten = state.model(wide[:1, 64:128]).logits
    other = F.cross_entropy(torch.cat((forgotten, alone)).flatten(0, 1), wide[:, 65:].flatten())
    assert abs(loss - other.item()) > 1e-4  # so the carried state made a difference


def test_load_gives_the_trained_model(tiny: Any, undisturbed: RunSummary) -> None:
    config = tiny()
    model, loaded = atlas.load(undisturbed.folder)
    assert loaded == config
    batch = build_data(config).validation(0)
    with torch.no_grad():
        logits = model(batch.inputs).logits
        losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        loss = mean_losses(losses.view_as(batch.weights), batch).total.item()
    assert undisturbed.validation_loss == pytest.approx(loss, rel=1e-6)
    older, _ = atlas.load(Path(undisturbed.folder) / "checkpoints" / "step-00000010")
    assert not torch.equal(older.embedding.weight, model.embedding.weight)
