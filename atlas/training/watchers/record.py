"""The numbers that watchers judge: what is known before step 1, and what was recorded since. Imports no torch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from typing import Any

LOW_RATE = 0.2  # of the highest learning rate
LEAST_WAY = 0.5  # nats from a uniform guess to the bigram: of noise there is nothing to learn
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
PASS = 0.25  # of the text: of rows drawn with replacement from it, 0.8 are still new then
LEARNED = 0.65  # of the loss of a uniform guess
PLACES = 32  # of rows in the text, looked for
DESCENTS = 3  # kept
LOOKS = 11  # at the memory of the process, ten steps apart, kept
READINGS = 2000  # of the watched rows kept


@dataclass(frozen=True)
class Facts:
    """Losses in nats per token; lengths in tokens."""

    steps: int
    warmup: int = 0  # steps of the learning rate's warm-up
    uniform: float = 0.0  # loss of a uniform guess
    width: int = 0  # of the model
    head_width: int = 0
    baseline: float | None = None  # loss of a model without memory on the validation text
    baseline_name: str = "bigram baseline"
    clip: float = 0.0  # train.gradient_clip; 0 = off
    memory: bool = False
    has_global: bool = False
    gated: bool = False  # the fusion has a gate
    carries: bool = False  # train.carry_memory
    sequence: int = 0
    shard: int = 0
    global_size: int = 0
    largest_local: int = 0  # chunk
    tokens: int = 0  # of a step
    watched: int = 0  # tokens of the watched rows; 0 = unknown
    text: int = 0  # tokens of the training text; 0 = unknown
    first_step: int = 0  # of this start: the steps done before it
    given_weights: bool = False  # by init_from
    unused: tuple[str, ...] = ()  # parts of the names of parameters that most steps do not use


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


@dataclass
class Record:
    facts: Facts
    step: int = 0
    losses: list[float] = field(default_factory=list)  # means over BLOCK steps: of text, else of recall
    open_losses: list[float] = field(default_factory=list)  # of the block that is not full yet
    of_text: bool = True  # the newest of them
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # gradient norms before clipping
    highest_lr: float = 0.0  # of the run, whatever rollbacks and faults have made of it
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
        self.highest_lr = max(self.highest_lr, lr)
        self.low_steps = self.low_steps + 1 if lr < LOW_RATE * self.highest_lr else 0

    def add_digest(self, digest: int) -> None:
        """Of the inputs of the newest step."""
        times, newest = self.digests.get(digest, (0, self.step))
        self.came.append((times, self.step - newest))
        if times or len(self.digests) < BATCHES:
            self.digests[digest] = times + 1, self.step
        for kept in (self.first_digests, self.digests_here):
            if len(kept) < FIRST_BATCHES:
                kept.append(digest)

    def add_rows(self, digests: Iterable[int]) -> None:
        """Of text rows, as long as few can be the same by chance."""
        for one in digests:
            self.rows += 1
            if self.rows * self.facts.sequence > PASS * self.facts.text:
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
        highest, low = state.get("learning_rate", (0.0, 0))
        self.highest_lr, self.low_steps = float(highest), int(low)
        self.watched = [(step, loss) for step, loss in state["watched"]]
        self.validations = [(step, loss) for step, loss in state["validations"]]
        self.measured = [Measured(**one) for one in state["measured"]]
        self.probed = [Probed(**one) for one in state["probed"]]
        self.memory_use = [MemoryUse(**one) for one in state["memory_use"]]
        self.first_digests = list(state.get("first_digests", []))  # older checkpoints have none
        self.validation_rows = state.get("validation_rows")
