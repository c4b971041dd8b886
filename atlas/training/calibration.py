"""Steady-state calibration of W_init, and the reset shock that judges it (docs/memory.md section 7).

Legend: B sequences, H heads, T tokens, S_L shard, d head width, h hidden width, p feature width.

    W_init <- mean over sequences and boundaries of the weights that a local memory without resets carries there

A reset replaces these weights by W_init, so with their mean as W_init a reset changes the weights least. Boundaries are
every S_L tokens of training sequences. The global memory is never reset, and its W_init is not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atlas.config import CalibrationConfig, require
from atlas.data.needles import Tokens
from atlas.data.sampler import VALIDATION_SEED, Stream, generator
from atlas.data.source import DataSource
from atlas.models.language_model import AtlasModel
from atlas.models.memory import AtlasMemory, InitialWeights
from atlas.ops.chunk_scan import written
from atlas.ops.fast_weights import FastWeights
from atlas.training.evaluating import evaluating
from atlas.training.reset_shock import reset_shock
from atlas.training.step import TrainStep


class Calibrator:
    """Calibrates a model and measures its reset shock, on text from a separate random stream.

    Raises `ConfigError` if calibration is enabled and the data has no text or the model has no memory.
    """

    def __init__(
        self, settings: CalibrationConfig, data: DataSource, step: TrainStep, model: AtlasModel, *, seed: int
    ) -> None:
        self.settings, self.step, self.text, self.seed = settings, step, data.corpus, seed
        self.has_memory = bool(_memories(model))
        allowed = "false for a model without a memory" if self.text else "false with data that has no text"
        possible = self.has_memory and self.text is not None
        require(possible or not settings.enabled, "calibration.enabled", settings.enabled, allowed)

    def measure(self, model: AtlasModel) -> dict[str, Any]:
        """The reset shock on validation text; None, with the reason in `message`, if it cannot be measured."""
        horizon = min(self.settings.horizon, model.plan.shard or 0)
        missing = self._missing(horizon + (model.plan.shard or 0))
        if missing:
            return {"reset_shock": None, "passed": None, "message": f"the reset shock was not measured: {missing}"}
        assert self.text is not None
        assert model.plan.shard is not None
        rng = generator(VALIDATION_SEED, Stream.calibration, 0)
        rows = _stretches(rng, self.text.validation, self.settings.rows, model.plan.shard + horizon + 1)
        with evaluating(model), self.step.autocast():
            shock = reset_shock(model, rows.to(self.step.device), horizon)
        return {
            "reset_shock": shock.relative,
            "passed": shock.relative < self.settings.threshold,
            "loss_with_reset": shock.with_reset,
            "loss_without": shock.without,
            "horizon_tokens": shock.horizon,
            "threshold": self.settings.threshold,
            "message": f"{shock.describe()} (allowed: below {self.settings.threshold:+.2%})",
        }

    def calibrate(self, model: AtlasModel, sequence: int) -> dict[str, Any]:
        """Calibrate W_init in place on text in sequences of `sequence` tokens.

        Repeated from the first W_init on twice as many tokens while the shock is not below the threshold, at most
        `attempts` times. The last attempt is kept.
        """
        assert self.text is not None
        before = self.measure(model)["reset_shock"]
        first = _initial_weights(model)
        record: dict[str, Any] = {}
        for attempt in range(self.settings.attempts):
            _set_initial_weights(model, first)
            count = ceil(self.settings.tokens * 2**attempt / sequence)
            rows = _stretches(generator(self.seed, Stream.calibration, 1 + attempt), self.text.train, count, sequence)
            with evaluating(model), self.step.autocast():
                means = mean_carried_weights(model, rows.to(self.step.device))
            _set_initial_weights(model, means)
            record = self.measure(model) | {"tokens": rows.numel(), "attempts": attempt + 1}
            if record["passed"] is not False:
                break
        return record | {"reset_shock_before": before}

    def _missing(self, length: int) -> str:
        """Why the shock cannot be measured on rows of `length` tokens; empty if it can."""
        if not self.has_memory:
            return "the model has no memory"
        if self.text is None:
            return "the data has no text"
        available = len(self.text.validation)
        return "" if available > length else f"{available} validation tokens hold no shard and what comes after it"


def mean_carried_weights(model: AtlasModel, rows: Tensor) -> list[FastWeights]:
    """Mean weights [H, ...] of every local memory of every layer, over token rows [R, T] read without resets."""
    sums: list[FastWeights] = []
    boundaries = 0
    for part in rows.split(max(1, model.tokens_at_once // rows.shape[1])):
        for weights in _carried_weights(model, part):
            totals = [FastWeights(*(matrix.double().sum(0) for matrix in one)) for one in weights]
            sums = [FastWeights(*map(torch.add, *pair)) for pair in zip(sums, totals, strict=True)] if sums else totals
            boundaries += part.shape[0]
    return [FastWeights(*(matrix / boundaries for matrix in total)) for total in sums]


def _carried_weights(model: AtlasModel, rows: Tensor) -> Iterator[list[FastWeights]]:
    """The weights [B, H, ...] of all local memories at every boundary, or at the end of rows shorter than a shard."""
    plan = model.plan._replace(shard=None)
    shard = min(model.plan.shard or rows.shape[1], rows.shape[1])
    state = None
    for first in range(0, rows.shape[1] - shard + 1, shard):
        state = model.read(rows[:, first : first + shard], state, plan=plan).state
        memories = zip(_memories(model), (block.memory for block in state.blocks if block.memory), strict=True)
        yield [
            FastWeights(*(matrix.unflatten(0, (rows.shape[0], -1)) for matrix in written(memory.rule, scan, 0.0)))
            for memory, after in memories
            for scan in after.local
        ]


def _memories(model: AtlasModel) -> list[AtlasMemory]:
    return [block.memory for block in model.mag_blocks if block.memory is not None]


def _initial_weights(model: AtlasModel) -> list[FastWeights]:
    """Copies of W_init of all local memories [H, ...]."""
    starts = [init(1, memory.heads).start for memory in _memories(model) for init in memory.local]
    return [FastWeights(*(matrix.detach().clone() for matrix in start)) for start in starts]


@torch.no_grad()
def _set_initial_weights(model: AtlasModel, weights: Iterable[FastWeights]) -> None:
    parameters = [init for memory in _memories(model) for init in memory.local]
    for init, start in zip(parameters, weights, strict=True):
        assert isinstance(init, InitialWeights)
        init.down.copy_(start.down)
        init.up.copy_(start.up)


def _stretches(rng: np.random.Generator, text: Tokens, count: int, length: int) -> Tensor:
    """[count, length] tokens from random places of a text that has at least `length`."""
    starts = rng.integers(0, len(text) - length + 1, (count, 1), dtype=np.int64)
    return torch.from_numpy(text[starts + np.arange(length)].astype(np.int64))
