"""Calibration of W_init: the mean it should be, the shock it is judged by, retries and refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import atlas
from atlas.config import (
    VOCABULARY,
    CalibrationConfig,
    ChunkSizeConfig,
    ConfigError,
    MemoryConfig,
    ModelConfig,
    TrainConfig,
)
from atlas.data.corpus import Corpus
from atlas.data.source import DataSource
from atlas.data.text import CorpusData
from atlas.models.block import AtlasMAGBlock
from atlas.models.language_model import AtlasModel
from atlas.models.memory import InitialWeights
from atlas.runs.build import build_data
from atlas.training.calibration import Calibrator, mean_carried_weights
from atlas.training.reset_shock import ResetShock, reset_shock
from atlas.training.step import TrainStep

SHARD, SEQUENCE = 8, 24


def make_model(memory: bool = True) -> AtlasModel:
    torch.manual_seed(0)
    settings = MemoryConfig(enabled=memory, hidden=8, rate_init=0.5)
    config = ModelConfig(width=16, layers=2, heads=2, window=5, feedforward=12, persistent_keys=6, memory=settings)
    return AtlasModel(config, ChunkSizeConfig([2, 4], 8, SHARD), VOCABULARY)


def make_data(validation: int = 2000, sequence: int = SEQUENCE) -> CorpusData:
    draw = np.random.default_rng(0)
    train, held_out = (draw.integers(97, 110, size, dtype=np.uint8) for size in (4000, validation))
    corpus = Corpus("letters", (), 1, train, held_out)
    source = CorpusData(sequence=sequence, batch_size=2, seed=0, steps=1, carry_memory=False)
    source.corpus = corpus
    return source


def textless() -> DataSource:
    return build_data(atlas.compose(["data=recall"]))


def calibrator(model: AtlasModel, data: DataSource | None = None, **settings: Any) -> Calibrator:
    step = TrainStep(TrainConfig(), torch.device("cpu"), torch.float32)
    return Calibrator(CalibrationConfig(**settings), data or make_data(), step, model, seed=0)


def initial_weights(model: AtlasModel) -> dict[str, torch.Tensor]:
    modules = {name: module for name, module in model.named_modules() if isinstance(module, InitialWeights)}
    return {f"{name}.{k}": v.detach().clone() for name, m in modules.items() for k, v in m.named_parameters()}


def test_the_mean_is_over_rows_and_boundaries_of_memories_that_are_never_reset() -> None:
    model = make_model()
    rows = torch.randint(97, 110, (3, SEQUENCE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = mean_carried_weights(model, rows)
        sums: dict[int, list[torch.Tensor]] = {}
        for row in rows:
            for end in (8, 16, 24):  # each boundary in a pass of its own
                state = model(row[None, :end], plan=model.plan._replace(shard=None)).state
                scans = [scan for block in state.blocks for scan in block.memory.local]
                for index, scan in enumerate(scans):
                    sums.setdefault(index, []).append(torch.cat([matrix.flatten(1) for matrix in scan.start], dim=1))
    for index, weights in enumerate(found):
        got = torch.cat([matrix.flatten(1) for matrix in weights], dim=1)
        torch.testing.assert_close(got.float(), torch.stack(sums[index]).mean(0), rtol=1e-4, atol=1e-5)
    assert len(found) == len(sums) == 4


def test_the_shock_is_the_loss_with_the_reset_over_the_loss_without() -> None:
    model = make_model()
    rows = torch.randint(97, 110, (5, SHARD + 4 + 1), generator=torch.Generator().manual_seed(0))
    shock = reset_shock(model, rows, horizon=4)
    losses = []
    with torch.no_grad():
        carried = model(rows[:, :SHARD], plan=model.plan._replace(shard=None)).state
        for plan in (model.plan, model.plan._replace(shard=None)):
            logits = model(rows[:, SHARD:-1], carried, plan=plan).logits  # token SHARD is the first of the new shard
            losses.append(F.cross_entropy(logits.flatten(0, 1), rows[:, SHARD + 1 :].flatten()).item())
    assert (shock.with_reset, shock.without) == (pytest.approx(losses[0], rel=1e-5), pytest.approx(losses[1], rel=1e-5))
    assert abs(losses[0] - losses[1]) > 1e-4
    assert ResetShock(1.1, 1.0, 4).relative == pytest.approx(0.1)


def test_calibration_sets_w_init_of_the_local_memories_and_nothing_else() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    record = calibrator(model, tokens=200, rows=4).calibrate(model, SEQUENCE)
    assert torch.equal(torch.get_rng_state(), random_state)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".memory.local." in name}
    assert (record["tokens"], record["attempts"], record["passed"]) == (216, 1, True)  # 9 whole sequences
    again = make_model()
    calibrator(again, tokens=200, rows=4).calibrate(again, SEQUENCE)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def with_old_state(model: AtlasModel) -> None:
    """Give the local memories a W_init far from any state that they reach."""
    with torch.no_grad():
        for block in model.blocks:
            assert isinstance(block, AtlasMAGBlock)
            assert block.memory is not None
            for init in block.memory.local:
                init.down.fill_(1.0)


def test_tokens_are_doubled_while_the_shock_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    one = calibrator(model, tokens=48, attempts=3, rows=4, threshold=1e-9)
    seen: list[dict[str, torch.Tensor]] = []
    measure = one.measure

    def watch(model: AtlasModel) -> dict[str, Any]:
        seen.append(initial_weights(model))
        return measure(model) | {"passed": False}

    monkeypatch.setattr(one, "measure", watch)
    record = one.calibrate(model, SEQUENCE)
    assert (record["tokens"], record["attempts"], record["passed"]) == (192, 3, False)
    assert len(seen) == 4  # before, and after every attempt
    single = make_model()
    calibrator(single, tokens=48, attempts=1, rows=4).calibrate(single, SEQUENCE)
    first = initial_weights(single)
    assert all(torch.equal(first[name], seen[1][name]) for name in first)


def test_a_state_that_no_text_leads_to_shocks_and_calibration_mends_it() -> None:
    model = make_model()
    with_old_state(model)
    one = calibrator(model, tokens=2000, rows=32, horizon=4)
    record = one.calibrate(model, SEQUENCE)
    assert abs(record["reset_shock"]) < abs(record["reset_shock_before"])


@pytest.mark.parametrize(
    ("memory", "data", "allowed"),
    [
        (True, textless, "false with data that has no text"),
        (False, make_data, "false for a model without a memory"),
    ],
)
def test_calibration_is_refused_where_it_cannot_be(memory: bool, data: Callable[[], DataSource], allowed: str) -> None:
    with pytest.raises(ConfigError) as error:
        calibrator(make_model(memory), data(), enabled=True)
    assert str(error.value) == f"calibration.enabled=True: must be {allowed}"


@pytest.mark.parametrize(
    ("memory", "data", "reason"),
    [
        (False, make_data, "the model has no memory"),
        (True, textless, "the data has no text"),
        (True, partial(make_data, 16, 8), "16 validation tokens hold no shard and what comes after it"),
    ],
)
def test_a_shock_that_cannot_be_measured_has_a_reason(
    memory: bool, data: Callable[[], DataSource], reason: str
) -> None:
    model = make_model(memory)
    found = calibrator(model, data()).measure(model)
    message = f"the reset shock was not measured: {reason}"
    assert found == {"reset_shock": None, "passed": None, "message": message}


def test_the_horizon_ends_with_the_shard() -> None:
    model = make_model()
    found = calibrator(model, make_data(17, 8), horizon=1000, rows=2).measure(model)
    assert found["horizon_tokens"] == SHARD
    assert found["reset_shock"] == pytest.approx(found["loss_with_reset"] / found["loss_without"] - 1)


@pytest.mark.parametrize("key", ["tokens", "attempts", "threshold", "horizon", "rows"])
def test_a_bad_setting_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^calibration.{key}=0: must be >"):
        CalibrationConfig(**{key: 0})
