"""The interface between the trainer and its data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

from atlas.data.batch import Batch
from atlas.data.corpus import Corpus
from atlas.data.needles import NeedleFormat


class DataSource(Protocol):
    """A data component. It holds no position: every row of a batch is a function of step and row alone."""

    @property
    def vocabulary(self) -> int:
        """How many different ids a token can be. Raises `ConfigError`."""
        ...

    @property
    def corpus(self) -> Corpus | None:
        """The text behind the batches, where there is one. Read when it is asked for; raises `ConfigError`."""
        ...

    @property
    def needles(self) -> NeedleFormat | None:
        """The format of the needles that training shows, where it shows any."""
        ...

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """The rows `rows`, neighbours, of the batch of training step `step` >= 1; all rows by default.

        A row is a pure function of (seed, step, row), the same on every platform. Only the wanted rows are made, so a
        process that trains on a part of the batch pays for its part; rows made apart are those of the whole batch.
        What the loss needs of the whole batch are its `Totals`: those of the parts add up to them. A row may stand for
        several shorter sequences.
        """
        ...

    def validation(self, index: int) -> Batch:
        """Validation batch `index` >= 0, whatever the seed. Text rows alone, where training has rows of text."""
        ...

    def baseline(self, batches: int) -> float:
        """Loss, nats per token, of a model without memory on the targets of validation batches 0 .. batches - 1."""
        ...

    def describe(self) -> dict[str, str | int | float]:
        """For the start line: the source of the data and its size."""
        ...


def baseline_name(source: DataSource) -> str:
    """What reports call `baseline`: the source's own `baseline_name`. A class with a `baseline` of its own does not
    inherit the name of another one."""
    for kind in type(source).__mro__:
        if "baseline_name" in vars(kind):
            return str(getattr(source, "baseline_name"))  # noqa: B009 (the protocol does not ask for it)
        if "baseline" in vars(kind):
            break
    return "baseline of the data source"


@dataclass(kw_only=True, eq=False)
class HandedOver:
    """What a run hands over to its data source; the base of the sources here, whose fields are the keys in YAML."""

    sequence: int  # tokens
    batch_size: int  # rows
    seed: int
    steps: int  # of the run
    carry_memory: bool

    def handed_over(self) -> dict[str, Any]:
        """The same for a source that this one is made of."""
        return {field.name: getattr(self, field.name) for field in fields(HandedOver)}
