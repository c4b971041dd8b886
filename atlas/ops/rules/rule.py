"""What a learning rule of the memory must provide.

A rule is one file of this folder, a line in `RULES`, a member of `Rule` and its settings (`atlas/config/rules.py`).

Legend: N rows, C tokens, n controls.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from atlas.ops.dual_form import ChunkInputs, Writes
from atlas.ops.fast_weights import FastWeights

# What a rule keeps between chunks besides the weights: a NamedTuple of tensors whose first dimension is the row.
# Made by its constructor: PyTorch 2.11 cannot return what `_replace` has made from a compiled block.
Kept = tuple[Any, ...]


class ChunkEnd(IntEnum):
    """The update at the end of a chunk; numbered as in `atlas/kernels/chunk.h`."""

    updates = 0
    step = 1  # W <- W - update, nothing is kept
    momentum = 2  # S <- theta S + update, W <- alpha W - S, and a `MomentumState` is kept


class Control(NamedTuple):
    """A gate of a rule, one per token: maximum * sigmoid(linear(token))."""

    name: str  # theta, forget (1 - alpha), rho or gamma of docs/memory.md section 5
    initial: float  # before training, in [0, maximum]; at 0 or at the maximum the gate is fixed there
    maximum: float = 1.0  # > 0

    @property
    def fixed(self) -> bool:
        return self.initial in (0.0, self.maximum)


class LearningRule(Protocol):
    """A rule turns a chunk's tokens into writes, and closes the chunk. It holds no state (docs/memory.md section 5)."""

    @property
    def controls(self) -> tuple[Control, ...]: ...

    @property
    def reads_start(self) -> bool:
        """True: every read is at the chunk's start weights, for local memories too."""
        ...

    @property
    def reads_end(self) -> bool:
        """True: in a chunk of one token, a local memory's read is at the weights after it: its controls are the
        token's own then, so the recurrence of the papers is causal. False: the prefix is that recurrence already."""
        ...

    @property
    def own_gradients(self) -> bool:
        """True: the writes are the gradients of the chunk's own tokens, scaled by their rates, as in `gd`. A fused form
        then computes them, and `write` is called only for a later part of an open chunk whose reads are of its prefix.
        False: `write` is always called. A new rule starts with False."""
        ...

    @property
    def chunk_end(self) -> ChunkEnd | None:
        """The update at the chunk's end, if it is one of `ChunkEnd`. A kernel then applies it itself, for all whole
        chunks of a stretch at once, and never calls `close`. None: `close` is called at each chunk's end."""
        ...

    def initial(self, weights: FastWeights) -> Kept:
        """What the rule keeps before the first token of a memory with these weights."""
        ...

    def write(self, start: FastWeights, kept: Kept, tokens: ChunkInputs) -> Writes:
        """The writes of a chunk, or of a part of one. What token t reads of them comes from tokens up to t only."""
        ...

    def keep(self, kept: Kept, tokens: ChunkInputs) -> Kept:
        """What the rule keeps after these tokens of the open chunk."""
        ...

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        """Weights after a chunk whose writes sum to `update`: `start` itself where all rates and controls of its tokens
        were 0, for so a frozen memory is read."""
        ...
