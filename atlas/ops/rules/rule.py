"""What a learning rule of the memory is. A rule is one file of this folder and an entry in `learning_rule`.

Legend: N rows, C tokens, n controls.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from atlas.ops.dual_form import ChunkInputs, Writes
from atlas.ops.fast_weights import FastWeights

# What a rule keeps between chunks besides the weights: a NamedTuple of tensors whose first dimension is the row.
Kept = tuple[Any, ...]


class ChunkEnd(IntEnum):
    """What a chunk leaves behind; numbered as in `atlas/kernels/chunk.h`."""

    updates = 0
    step = 1  # W <- W - U, nothing is kept
    momentum = 2  # S <- theta S + U, W <- alpha W - S, and a `MomentumState` is kept


class Control(NamedTuple):
    """A gate of a rule, one per token: maximum * sigmoid(linear(token)). With all controls at 0 nothing is written."""

    initial: float  # before training; at 0 or at the maximum the gate is fixed there
    maximum: float = 1.0

    @property
    def fixed(self) -> bool:
        return self.initial in (0.0, self.maximum)


class LearningRule(Protocol):
    """Writes at the start weights of a chunk, and what happens at the chunk's end. A rule itself holds no state."""

    @property
    def controls(self) -> tuple[Control, ...]: ...

    @property
    def reads_start(self) -> bool:
        """True: every read is at the chunk's start weights, for local memories too."""
        ...

    @property
    def own_gradients(self) -> bool:
        """True: `write` gives the gradients of the chunk's own tokens, as `gd` does: the fused chunk may be used."""
        ...

    @property
    def chunk_end(self) -> ChunkEnd | None:
        """What `close` does if it is one of these: all whole chunks of a stretch may then be run at once by a kernel,
        which does not ask `close`. None: it is asked."""
        ...

    def initial(self, weights: FastWeights) -> Kept:
        """What the rule keeps before the first token of a memory with these weights."""
        ...

    def write(self, start: FastWeights, kept: Kept, tokens: ChunkInputs) -> Writes:
        """The writes of a chunk, or of a part of one; what token t has seen of them comes from tokens up to t."""
        ...

    def keep(self, kept: Kept, tokens: ChunkInputs) -> Kept:
        """What the rule keeps after these tokens of the open chunk."""
        ...

    def close(self, start: FastWeights, update: FastWeights, kept: Kept) -> tuple[FastWeights, Kept]:
        """Weights after a chunk whose writes sum to `update`."""
        ...
