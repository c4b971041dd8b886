"""Data sources that name no text behind their rows (`corpus = None`), as a user's own, with a mistake in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from atlas.data.batch import Batch, rows_of_batch
from experiments.silent.wrong_data import Sound
from experiments.silent.wrong_limits import ValidatedOnTraining

CYCLE = 6  # batches


class Nameless:
    """The calm twin of the others: rows of text, of which the run knows nothing else."""

    corpus, needles = None, None

    def __init__(self, **settings: Any) -> None:
        self.text = self.read(**settings)
        self.vocabulary = self.text.vocabulary

    def read(self, **settings: Any) -> Sound:
        return Sound(**settings)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        return self.text.batch(step, rows)

    def validation(self, index: int) -> Batch:
        return self.text.validation(index)

    def baseline(self, batches: int) -> float:
        return self.text.baseline(batches)

    def describe(self) -> dict[str, str | int | float]:
        return {"source": "rows of the user's own"}


class Cycling(Nameless):
    """A buffer of so many batches is read again and again."""

    def batch(self, step: int, rows: range | None = None) -> Batch:
        return self.text.batch((step - 1) % CYCLE + 1, rows)


class NotSplit(Nameless):
    """The split is forgotten: validation rows are cut from the training text."""

    def read(self, **settings: Any) -> Sound:
        return ValidatedOnTraining(**settings)


class Uninitialised(Nameless):
    """A reader returns memory that nobody wrote: the first of four rows is random bytes."""

    def batch(self, step: int, rows: range | None = None) -> Batch:
        found = self.text.batch(step, rows)
        size = found.inputs.shape[1] + 1
        wanted = rows_of_batch(rows, self.text.batch_size)
        noise = np.stack([np.random.default_rng((self.text.seed, step, row)).integers(0, 256, size) for row in wanted])
        whole, random = torch.from_numpy(noise), torch.tensor([row % 4 == 0 for row in wanted])[:, None]
        inputs, targets = (
            torch.where(random, wrong, right)
            for wrong, right in ((whole[:, :-1], found.inputs), (whole[:, 1:], found.targets))
        )
        return replace(found, inputs=inputs.contiguous(), targets=targets.contiguous())
