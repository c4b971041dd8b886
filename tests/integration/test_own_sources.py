"""Data sources that name no text, and a learning rule, with a mistake in them: the run tells, and calm twins do not."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import atlas
from atlas.data.batch import Batch
from atlas.ops.fast_weights import FastWeights, add, subtract
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.rules.rule import Kept
from atlas.telemetry.run_files import RunFiles

pytestmark = pytest.mark.slow


class Rows:
    """Of a text of few letters, 24,576 tokens for training and 8,192 behind them."""

    vocabulary, corpus, needles = 256, None, None

    def __init__(self, *, fault: str, sequence: int, batch_size: int, seed: int, steps: int, carry_memory: bool):
        self.fault, self.shape, self.seed = fault, (batch_size, sequence), seed
        text = np.random.default_rng(0).geometric(0.2, 32_768) + 96
        self.train, self.held_out = text[:24_576], text[24_576:]

    def cut(self, text: Any, *key: int) -> Any:
        start = np.random.default_rng(key).integers(0, len(text) - self.shape[1] - 1)
        return text[start : start + self.shape[1] + 1]

    def rows(self, tokens: list[Any]) -> Batch:
        whole, recall = np.stack(tokens).astype(np.uint8), np.zeros(len(tokens), dtype=bool)
        weights = np.ones((len(tokens), self.shape[1]), dtype=np.float32)
        return Batch.from_tokens(whole, weights, recall=recall, fresh=~recall)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        step = step % 3 if self.fault == "repeated_batch" else step
        tokens = [self.cut(self.train, self.seed + 1, step, row) for row in rows or range(self.shape[0])]
        if self.fault == "noise_rows":
            tokens[0] = np.random.default_rng(step).integers(0, 256, self.shape[1] + 1)
        return self.rows(tokens)

    def validation(self, index: int) -> Batch:
        text = self.train if self.fault == "validation_seen" else self.held_out
        return self.rows([self.cut(text, 0, index, row) for row in range(self.shape[0])])

    def baseline(self, batches: int) -> float:
        return float(np.log(256))

    def describe(self) -> dict[str, str | int | float]:
        return {"source": "rows"}


@dataclass(frozen=True)
class Signed(GradientDescent):
    up: bool
    chunk_end: ClassVar[None] = None

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        return (add if self.up else subtract)(start, update), kept


def drawn(model: torch.nn.Module, step: int) -> dict[str, float]:
    return {"torch": torch.rand(()).item(), "numpy": float(np.random.rand()), "python": random.random()}


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_parts")
    vars(module).update(Rows=Rows, Signed=Signed, drawn=drawn)
    monkeypatch.setitem(sys.modules, "own_parts", module)


@pytest.mark.parametrize("fault", ["repeated_batch", "validation_seen", "noise_rows", ""])
def test_rows_of_a_source_that_names_no_text(fault: str, tiny: Any, tmp_path: Path) -> None:
    settings = ("trust=[own_parts]", "train.steps=120", "train.validation_every=20", "train.validation_batches=8")
    config = tiny(*settings, "train.batch_size=4", "optim.lr=0.01", "checkpoint.every=60")
    summary = atlas.train(replace(config, data={"_target_": "own_parts.Rows", "fault": fault}), tmp_path / "run")
    found = {one["watch"] for one in summary.watch}
    assert found & {"repeated_batch", "validation_seen", "noise_rows", "writes"} == ({fault} if fault else set())


@pytest.mark.parametrize("up", [True, False])
def test_a_learning_rule_that_goes_up_the_gradient(up: bool, tiny: Any, tmp_path: Path) -> None:
    rule = ("+model.memory.own_rule._target_=own_parts.Signed", f"+model.memory.own_rule.up={up}")
    summary = atlas.train(tiny("trust=[own_parts]", "train.steps=50", *rule), tmp_path / "run")
    assert ("writes" in {one["watch"] for one in summary.watch}) is up


def test_code_that_draws_from_the_global_generators_draws_by_the_seed(tiny: Any, tmp_path: Path) -> None:
    numbers = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(len(numbers))  # what the process drew before does not count
        config = tiny("trust=[own_parts]", "telemetry.metrics=[own_parts.drawn]", "train.steps=2", f"seed={seed}")
        atlas.train(config, tmp_path / name)
        row = RunFiles(tmp_path / name).rows[-1]
        numbers.append([row[f"own/{kind}"] for kind in ("torch", "numpy", "python")])
    assert numbers[0] == numbers[1]
    assert all(one != other for one, other in zip(numbers[1], numbers[2], strict=True))
