"""The validation loss is a mean over targets, however they are spread over batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import atlas
from atlas.config import ConfigError
from atlas.data.batch import Batch
from atlas.data.source import DataSource
from atlas.training.evaluation import Evaluator
from atlas.training.step import TrainStep
from tests.unit.training.test_step import SETTINGS


class Uneven(DataSource):
    """Batch 0 has 8 targets, batch 1 has 2."""

    corpus = None

    def batch(self, step: int, rows: range | None = None) -> Batch:
        return self.validation(step)

    def validation(self, index: int) -> Batch:
        tokens = torch.randint(0, 256, (1, 13), generator=torch.Generator().manual_seed(index))
        weights = torch.zeros(1, 12)
        weights[:, : (8, 2)[index]] = 1
        every = torch.ones(1, dtype=torch.bool)
        return Batch(tokens[:, :-1], tokens[:, 1:], weights, ~every, every)

    def baseline(self, batches: int) -> float:
        return 0.0

    def describe(self) -> dict[str, str | int | float]:
        return {}


def test_each_target_counts_once() -> None:
    config = atlas.compose([*SETTINGS, "train.carry_memory=false"])
    model, data = atlas.build_model(config), Uneven()
    evaluator = Evaluator(data, TrainStep(config.train, torch.device("cpu"), torch.float32), batches=2, watch_rows=1)
    losses = []
    with torch.no_grad():
        for batch in map(data.validation, range(2)):
            found = model.losses(model.read(batch.inputs).hidden, batch.targets)
            losses += found[batch.weights > 0].tolist()
    assert len(losses) == 10
    assert evaluator.validation_loss(model) == pytest.approx(sum(losses) / 10, rel=1e-5)


class Uncounted(Uneven):
    def validation(self, index: int) -> Batch:
        batch = super().validation(index)
        return replace(batch, weights=0 * batch.weights)


def test_watched_rows_without_a_target_that_counts_are_refused() -> None:
    config = atlas.compose([*SETTINGS, "train.carry_memory=false"])
    step = TrainStep(config.train, torch.device("cpu"), torch.float32)
    with pytest.raises(ConfigError, match="Uncounted: must be a source whose first 1 validation rows have a target of"):
        Evaluator(Uncounted(), step, batches=2, watch_rows=1)
