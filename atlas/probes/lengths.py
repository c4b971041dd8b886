"""Perplexity beyond the trained length: does a longer context help or harm the tokens after it?

Legend: R rows, T trained length, F length factor.

Every stretch of T tokens is read twice: after all that came before it, and on its own from the initial state. The text
is the same, so the difference is the effect of the stretches before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite

from torch import Tensor
from torch.nn import functional as F

from atlas.models.language_model import AtlasModel, ModelState
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.probes.neutral import untouched

EXP_MAX = 700.0  # nats; a float holds no larger exponential
PIECE_TOKENS = 1024  # of a text read at once: limits peak memory


@dataclass(frozen=True)
class Stretch:
    """Losses of one stretch of the trained length, in nats per token."""

    factor: int  # its number, from 1: the text up to its end is `factor` trained lengths long
    streamed: float  # with everything before it read
    alone: float  # from the initial state


@dataclass(frozen=True)
class Length:
    """Perplexity of a text of `factor` trained lengths, read as a whole and in independent pieces."""

    factor: int
    perplexity: float
    in_pieces: float

    @property
    def change(self) -> float:
        """Relative; infinite where the perplexity is not finite."""
        return self.perplexity / self.in_pieces - 1 if isfinite(self.perplexity) else inf


def loss_by_stretch(
    model: AtlasModel,
    rows: Tensor,
    trained_length: int,
    *,
    plan: ChunkPlan | None = None,
    mode: MemoryMode = MemoryMode.learn,
) -> list[Stretch]:
    """Losses of token rows [R, F * T + 1], stretch by stretch. Changes nothing of the model."""
    found: list[Stretch] = []
    state: ModelState | None = model.initial_state(rows.shape[0], plan)
    with untouched(model):
        for index in range((rows.shape[1] - 1) // trained_length):
            part = rows[:, index * trained_length : (index + 1) * trained_length + 1]
            streamed, state = _loss(model, part, state, plan, mode)
            alone, _ = _loss(model, part, None, plan, mode)
            found.append(Stretch(index + 1, streamed, alone))
    return found


def by_length(stretches: Sequence[Stretch], factors: Sequence[int]) -> list[Length]:
    """Perplexities of the text up to each of the `factors`."""
    lengths = []
    for factor in factors:
        until = stretches[:factor]
        means = [sum(losses) / factor for losses in ([s.streamed for s in until], [s.alone for s in until])]
        lengths.append(Length(factor, *(exp(mean) if mean < EXP_MAX else inf for mean in means)))
    return lengths


def _loss(
    model: AtlasModel, part: Tensor, state: ModelState | None, plan: ChunkPlan | None, mode: MemoryMode
) -> tuple[float, ModelState]:
    out = model(part[:, :-1], state, plan=plan, mode=mode)
    loss = F.cross_entropy(out.logits.float().flatten(0, 1), part[:, 1:].flatten())
    return loss.item(), out.state.detach()


def text_loss(model: AtlasModel, text: Tensor, *, mode: MemoryMode = MemoryMode.learn) -> float:
    """Mean loss of one text [T >= 2] in nats per token, read from its start to its end; its first token is given."""
    rows, state, total = text.unsqueeze(0), model.initial_state(1), 0.0
    with untouched(model):
        for first in range(0, len(text) - 1, PIECE_TOKENS):
            part = rows[:, first : first + PIECE_TOKENS + 1]
            loss, state = _loss(model, part, state, None, mode)
            total += loss * (part.shape[1] - 1)
    return total / (len(text) - 1)
