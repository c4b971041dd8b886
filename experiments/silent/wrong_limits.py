"""Models and data sources that use less than they should: attention, gradients of a batch, text.

Models by `optim._target_=...wrong_limits.NAME`, as in `wrong_model.py`; sources by `data._target_=...`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from atlas.data.batch import Batch
from atlas.data.needles import Tokens
from atlas.data.sampler import VALIDATION_SEED, RowGenerators, Stream, generator
from atlas.models.attention import AttentionState, SlidingWindowAttention
from atlas.models.language_model import AtlasModel
from atlas.ops.rotary import Rotary
from atlas.training.optimizer import ScheduledOptimizer
from experiments.silent.wrong_data import Sound
from experiments.silent.wrong_optim import sound

LIMIT = 12  # batches


class FirstBatches(Sound):
    """A limit for trying things out was left in: there are so many batches, and then the first comes again."""

    def spoil(self, batch: Batch, step: int, rows: range | None) -> Batch:
        return super(Sound, self).batch((step - 1) % LIMIT + 1, rows)


class ValidatedOnTraining(Sound):
    """Validation rows are drawn from the training text."""

    def validation(self, index: int) -> Batch:
        rng = generator(VALIDATION_SEED, Stream.validation, index)
        tokens = self._stretches(rng, self.batch_size, self.corpus.train)
        return self._to_batch(tokens, np.ones(self.batch_size, dtype=np.bool_))


class TrainedOnAll(Sound):
    """Training rows are drawn from the whole text, that of validation included."""

    def rows(self, step: int, rows: range) -> tuple[Tokens, NDArray[np.bool_]]:
        rng = RowGenerators.of_step(self.seed, Stream.text, step, rows)
        whole = np.concatenate((self.corpus.train, self.corpus.validation))
        return self._stretches(rng, len(rows), whole), np.ones(len(rows), dtype=np.bool_)


def gradients_overwritten(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """Gradients are set to zero before each forward pass: of the micro-batches of a step the last one alone counts."""
    model.register_forward_pre_hook(lambda module, _: module.zero_grad() if module.training else None)
    return sound(model=model, steps=steps, **settings)


class _Placeless(SlidingWindowAttention):
    def forward(self, x: Tensor, state: AttentionState, rotary: Rotary, persistent: Any) -> Any:
        return super().forward(x, state, _Nowhere(rotary.first), persistent)


class _Nowhere(Rotary):
    def __call__(self, x: Tensor) -> Tensor:
        return x


def positions_ignored(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """Queries and keys are not turned by their positions: attention does not know the order of tokens."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.attention.__class__ = _Placeless
    return sound(model=model, steps=steps, **settings)


class _Tempered(AtlasModel):
    def losses(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return super().losses(hidden / 3 if self.training else hidden, targets, weights)


def temperature_in_training(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """Logits are divided by a temperature of 3 for the loss of training alone."""
    model.__class__ = _Tempered
    return sound(model=model, steps=steps, **settings)


class _Scaled(AtlasModel):
    def losses(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        return super().losses(hidden * 0.5, targets, weights)


def logits_scaled_for_the_loss(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The loss scales the logits, and generation takes them as they are."""
    model.__class__ = _Scaled
    return sound(model=model, steps=steps, **settings)
