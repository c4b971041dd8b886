"""The interface between the trainer and its data."""

from __future__ import annotations

from typing import Protocol

from atlas.data.batch import Batch
from atlas.data.corpus import Corpus
from atlas.data.needles import NeedleFormat


class DataSource(Protocol):
    """A data component. It holds no position: every batch is a function of the step alone."""

    vocabulary: int

    @property
    def corpus(self) -> Corpus | None:
        """The text behind the batches, where there is one. Read when it is asked for; raises `ConfigError`."""
        ...

    @property
    def needles(self) -> NeedleFormat | None:
        """The format of the needles that training shows, where it shows any."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of training step `step` >= 1: a pure function of (seed, step), the same on every platform."""
        ...

    def validation(self, index: int) -> Batch:
        """Validation batch `index` >= 0, whatever the seed: text rows only where there is text."""
        ...

    def baseline(self, batches: int) -> float:
        """Loss, nats per token, of a model without memory on the targets of validation batches 0 .. batches - 1."""
        ...

    def describe(self) -> dict[str, str | int | float]:
        """For the start line: the source of the data and its size."""
        ...
