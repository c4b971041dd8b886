"""The numbers that watchers judge, as a run records them. Imports no torch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from atlas.training.watchers.facts import Facts
from atlas.training.watchers.observations import (
    BatchFacts,
    Measured,
    MemoryUse,
    ModelFacts,
    Probed,
    Recomputed,
    Restored,
    Unsaved,
)

LOW_RATE = 0.2  # of the highest learning rate
LEAST_WAY = 0.5  # nats from a uniform guess to the bigram: of noise there is nothing to learn
EVERY = 10  # steps between two looks at batch, memory and record
BLOCK = 10  # steps whose losses are one mean
BLOCKS = 4000  # kept
RECENT = 100  # norms of gradients and of weights kept, one a step
STEPS = 50  # times of steps kept, of the start and of the newest
FIRST_STEPS = 10  # of a start are slow: memory is allocated, kernels are built
DIGESTS = 20  # newest batches of which is kept whether they came before
BATCHES = 100_000  # digests kept
FIRST_BATCHES = 3  # of a run and of a start, whose digests are kept
LOOKED_AT = 2  # batches that were looked into, kept
TAILS = 5  # batches whose ends of rows are kept
CONTINUED = 5  # steps whose rows were compared with the step before, kept; after a rollback one differs
ROWS = 128  # newest rows of which is kept whether they are new
MOST_ROWS = 500_000  # whose digests are kept: 45 MB
PASS = 0.25  # of the text: of rows drawn with replacement from it, 0.8 are still new then
LEARNED = 0.65  # of the loss of a uniform guess
PLACES = 32  # of rows in the text, looked for
DESCENTS = 3  # kept
LOOKS = 11  # at the memory of the process, ten steps apart, kept
READINGS = 2000  # of the watched rows kept


@dataclass
class Record:
    facts: Facts
    step: int = 0
    losses: list[float] = field(default_factory=list)  # means over BLOCK steps: of text, else of recall
    open_losses: list[float] = field(default_factory=list)  # of the block that is not full yet
    of_text: bool = True  # the newest of them
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # gradient norms before clipping
    highest_lr: float = 0.0  # of the run, as a share of optim.lr, which a start or a rollback may lower
    low_steps: int = 0  # newest steps in a row whose learning rate is below LOW_RATE of the highest
    weight_norms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # of all weights, before each step
    watched: list[tuple[int, float]] = field(default_factory=list)  # regular readings: step, loss of the watched rows
    validations: list[tuple[int, float]] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)  # the newest two
    probed: list[Probed] = field(default_factory=list)
    memory_use: list[MemoryUse] = field(default_factory=list)
    first_digests: list[int] = field(default_factory=list)  # of the first FIRST_BATCHES batches of the run
    validation_rows: int | None = None  # digest of the first validation batch
    # Of this start alone:
    model_facts: ModelFacts | None = None
    mode_gap: tuple[int, float] | None = None  # step; loss of the watched rows in evaluation minus in training mode
    restored: Restored | None = None
    unsaved: Unsaved | None = None
    recomputed: Recomputed | None = None
    validation_known: tuple[int, int] = (0, 0)  # validation rows that stand in the training text, of so many
    validation_seen: float = 0.0  # share of the validation rows that training has read, where no text is known
    training_held_out: int = 0  # training rows that stand in the validation text, and not in that of training
    in_files: tuple[int, int] | None = None  # pieces of the text that stand in its files, and those looked for
    side_effects: tuple[int, list[str]] | None = None  # the first step after which something changed, and what
    descents: list[float] = field(default_factory=list)  # see `descent`, of the newest DESCENTS measurements
    row_digests: set[int] = field(default_factory=set)  # of text rows, in the first part of a pass
    rows: int = 0  # in it
    new_rows: deque[bool] = field(default_factory=lambda: deque(maxlen=ROWS))  # whether it is the first of its kind
    row_losses: deque[float] = field(default_factory=lambda: deque(maxlen=ROWS))  # see `add_row_losses`
    places: list[float] = field(default_factory=list)  # of the first rows in the training text, in [0, 1]
    digests_here: list[int] = field(default_factory=list)  # of its first FIRST_BATCHES batches
    same_rows: int = 0  # looks in a row at which two processes had the same rows
    continued: deque[float] = field(default_factory=lambda: deque(maxlen=CONTINUED))  # see `continued_share`
    digests: dict[int, tuple[int, int]] = field(default_factory=dict)  # of a batch -> times that it came, newest step
    # Of each of the newest batches: how often it came before, and how many steps ago
    came: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=DIGESTS))
    batches: deque[BatchFacts] = field(default_factory=lambda: deque(maxlen=LOOKED_AT))  # of one in ten
    tails: deque[float] = field(default_factory=lambda: deque(maxlen=TAILS))  # `counted_tails`, of one in ten
    masked: Counter[int] = field(default_factory=Counter)  # see `BatchFacts.masked`, of one batch in ten
    counted: set[int] = field(default_factory=set)
    first_seconds: list[float] = field(default_factory=list)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))
    steps_here: int = 0
    clock_jump: float = 0.0  # seconds by which the wall clock left the steady one between two steps, the largest
    memory: dict[str, deque[tuple[int, int]]] = field(default_factory=dict)  # place -> (step, bytes)
    missing: list[str] = field(default_factory=list)  # files that were there
    edited: list[str] = field(default_factory=list)  # files that the run had written otherwise
    kept_moments: tuple[float, float] | None = None  # share of parameters with moments: restored, after one step
    ended: bool = False
    open_suspicion: str = ""  # at the last step: what is out of line

    def add_step(
        self, step: int, loss: float, norm: float, seconds: float, *, weights: float | None = None, of_text: bool = True
    ) -> None:
        """`loss`: of text, else of recall; `weights`: their norm. A step that is not finite is left to the rollback."""
        self.step, self.of_text = step, of_text
        if not (isfinite(loss) and isfinite(norm)):
            return
        self.open_losses.append(loss)
        if len(self.open_losses) == BLOCK:
            self.losses = [*self.losses[-(BLOCKS - 1) :], sum(self.open_losses) / BLOCK]
            self.open_losses = []
        self.norms.append(norm)
        self.weight_norms.extend(() if weights is None else (weights,))
        self.steps_here += 1
        if self.steps_here > FIRST_STEPS:
            self.seconds.append(seconds)
            if len(self.first_seconds) < STEPS:
                self.first_seconds.append(seconds)

    def add_lr(self, lr: float) -> None:
        """As a share of optim.lr."""
        self.highest_lr = max(self.highest_lr, lr)
        self.low_steps = self.low_steps + 1 if lr < LOW_RATE * self.highest_lr else 0

    def add_digest(self, digest: int, whole: int | None = None) -> None:
        """Of the inputs of the newest step, of one process. `whole`: of all of them, where it differs."""
        times, newest = self.digests.get(digest, (0, self.step))
        self.came.append((times, self.step - newest))
        if times or len(self.digests) < BATCHES:
            self.digests[digest] = times + 1, self.step
        for kept in (self.first_digests, self.digests_here):
            if len(kept) < FIRST_BATCHES:
                kept.append(digest if whole is None else whole)

    def add_rows(self, digests: Iterable[int], groups: int = 1) -> None:
        """Of text rows, as long as few can be the same by chance. `groups`: of processes that read as many each."""
        for one in digests:
            self.rows += groups
            if self.rows > MOST_ROWS or self.rows * self.facts.sequence > PASS * self.facts.text:
                return
            self.new_rows.append(one not in self.row_digests)
            self.row_digests.add(one)

    def add_row_losses(self, losses: Iterable[float]) -> None:
        """Of a step's text rows, since the model knows the validation rows: before, many are as hard as noise.

        In a spike all of them are, which says nothing of the rows.
        """
        rows, learned = [*losses], LEARNED * self.facts.uniform
        if rows and min(rows) < learned and self.validations and self.validations[-1][1] < learned:
            self.row_losses.extend(rows)

    def add_memory(self, sizes: dict[str, int]) -> None:
        """Bytes by place."""
        for place, size in sizes.items():
            self.memory.setdefault(place, deque(maxlen=LOOKS)).append((self.step, size))

    def add_measured(self, measured: Measured) -> None:
        self.measured = [*self.measured[-1:], measured]

    @property
    def twice(self) -> list[Measured]:
        """The newest two measurements, or none: one alone may be chance."""
        return self.measured if len(self.measured) == 2 else []

    def on_the_way(self, loss: float) -> float | None:
        """How far from a uniform guess (0) to the baseline (1); None where the two are nearly the same."""
        facts = self.facts
        way = facts.uniform - facts.baseline if facts.baseline is not None else 0.0
        return (facts.uniform - loss) / way if way > LEAST_WAY else None

    @property
    def settled(self) -> int:
        """Steps since the learning rate has reached its height."""
        return self.step - self.facts.warmup

    def forget_held_out(self) -> None:
        """What was read of the validation rows of another text cannot be compared with those of this one."""
        self.validation_rows = None
        self.watched, self.validations = [], []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with, as plain containers."""
        return {
            "losses": list(self.losses),
            "open_losses": list(self.open_losses),
            "norms": list(self.norms),
            "weight_norms": list(self.weight_norms),
            "learning_rate": [self.highest_lr, self.low_steps],
            "watched": [list(reading) for reading in self.watched],
            "validations": [list(one) for one in self.validations],
            "measured": [asdict(one) for one in self.measured],
            "probed": [asdict(one) for one in self.probed],
            "memory_use": [asdict(one) for one in self.memory_use],
            "first_digests": list(self.first_digests),
            "validation_rows": self.validation_rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.open_losses = list(state["losses"]), list(state["open_losses"])
        self.norms = deque(state["norms"], maxlen=RECENT)
        self.weight_norms = deque(state.get("weight_norms", ()), maxlen=RECENT)  # older checkpoints have none
        highest, low = state.get("learning_rate", (0.0, 0))  # of older checkpoints no share, and below any
        self.highest_lr, self.low_steps = float(highest), int(low)
        self.watched = [(step, loss) for step, loss in state["watched"]]
        self.validations = [(step, loss) for step, loss in state["validations"]]
        self.measured = [Measured(**one) for one in state["measured"]]
        self.probed = [Probed(**one) for one in state["probed"]]
        self.memory_use = [MemoryUse(**one) for one in state["memory_use"]]
        self.first_digests = list(state.get("first_digests", []))  # older checkpoints have none
        self.validation_rows = state.get("validation_rows")
        # After a rollback the run goes on, and may read the same batches again:
        self.rows, self.ended, self.open_suspicion = 0, False, ""
        for seen in (self.row_digests, self.new_rows, self.digests, self.came):
            seen.clear()
