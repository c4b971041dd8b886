"""What a run observes of its model, its batches and itself, for the watchers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf


@dataclass(frozen=True)
class Measured:
    """Taken from the model at some steps. Keys of `values`: layer<i>/<memory>/<quantity>, layer<i>/<quantity>."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
    unmoved: list[str] = field(default_factory=list)  # parameters of which the step has moved no element
    unmoved_share: float = 0.0  # of all elements
    kept_gradients: bool = False  # the step has added its gradients to those of earlier steps
    below_epsilon: float = 0.0  # and
    second_moment: float = 0.0  # the norm, of `SecondMoments`

    def of(self, quantity: str) -> dict[str, float]:
        """Of every layer and memory, by its name: `layer0/global`."""
        ending = f"/{quantity}"
        return {key.removesuffix(ending): value for key, value in self.values.items() if key.endswith(ending)}


@dataclass(frozen=True)
class Probed:
    """A NIAH level at one step."""

    step: int
    level: str
    passed: bool | None
    accuracy: float | None
    key_blind: float | None
    chance: float
    control: float | None = None  # accuracy with the memory off


@dataclass(frozen=True)
class MemoryUse:
    """Loss of the watched rows, nats per token, by what the memory does."""

    step: int
    on: float
    off: float
    frozen: float  # it reads its initial weights and writes nothing
    error: float = inf  # standard error of the mean of frozen - on; older checkpoints have none

    @property
    def metrics(self) -> dict[str, float]:
        return {f"memory_use/{mode}": getattr(self, mode) for mode in ("on", "off", "frozen")}


@dataclass(frozen=True)
class ModelFacts:
    """The whole model on one row. Largest changes of an output, in root mean squares of the outputs."""

    rows: float  # where other rows of the batch were changed
    future: float  # where later tokens were changed
    noise: float = 0.0  # where nothing was changed
    modes: bool = False  # whether an output changes with the mode of the model
    parts: float = 0.0  # where the row was read in parts
    slopes: dict[str, float] = field(default_factory=dict)  # see `slopes`, by part of the model
    reach: dict[str, float] = field(default_factory=dict)  # see `reach`
    head: float = 0.0  # nats by which the losses of the model are not the cross entropies of its logits, at most


@dataclass(frozen=True)
class Restored:
    """A resumed run before its first step."""

    same_rows: bool  # the validation rows are those of the start before
    loss_before: float | None  # of the watched rows, nats per token, when the step was trained; None: not read then
    loss: float  # now


@dataclass(frozen=True)
class Unsaved:
    """How far a model and an optimiser that are made anew from the saved state differ from those of the run."""

    update: float  # norm of the difference of their steps over that of the step, in the part that differs most
    part: str  # of the model
    outputs: float  # largest difference, in root mean squares of the outputs


@dataclass(frozen=True)
class Recomputed:
    """A step, and what plain code makes of its batch."""

    loss: float  # nats, as the step has it
    plain_loss: float
    cosine: float  # between the gradients of `part`, of all parts the lowest
    part: str
    norm: float  # of the gradient before clipping
    plain_norm: float


@dataclass(frozen=True)
class BatchFacts:
    """Of the rows that rank 0 has made."""

    commonest: float  # share of the most frequent symbol among weighted targets of text rows; 0 without any
    padding: float  # share of targets without weight in text rows; 0 without text rows
    next_tokens: float  # share of weighted targets that are the next input
    copies: float  # share of weighted targets that are the input itself
    counted_tails: float = 0.0  # share of text rows whose last eighth is one repeated symbol that counts
    masked: dict[int, int] = field(default_factory=dict)  # id -> targets that do not count, between two that do
    counted: frozenset[int] = frozenset()  # ids that count somewhere, all of text rows
    different_rows: float = 1.0  # share of different ones among the text rows, or the recall rows, whichever is less
