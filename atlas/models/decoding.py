"""Continuing a prompt token by token: prefill in large pieces, then one token at a time from the carried state.

Legend: B sequences, T tokens, V vocabulary.

Time and memory per token do not depend on how much was read: attention keeps its window, the memories keep their
weights and the open chunk (a model without a window, `model.window=0`, keeps every token). On one grid of chunks,
decoding gives the logits of a single pass over prompt and continuation, to round-off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from atlas.config.console import log
from atlas.models.language_model import AtlasModel, ModelState
from atlas.models.plan import ChunkPlan, MemoryMode

PREFILL_TOKENS = 1024  # of a prompt read at once: bounds the memory of a long prompt


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: p ~ softmax(logits / temperature), then cut to `top_k` and to `top_p`."""

    temperature: float = 1.0  # 0 = the likeliest token
    top_k: int = 0  # tokens that may be drawn, the likeliest; 0 = all
    top_p: float = 1.0  # the fewest likeliest tokens whose probabilities sum to at least this


@torch.no_grad()
def decode(
    model: AtlasModel,
    prompt: Tensor,
    sampling: Sampling | None = None,
    *,
    generator: torch.Generator | None = None,
    prefill: ChunkPlan | None = None,
    plan: ChunkPlan | None = None,
    mode: MemoryMode | str = MemoryMode.learn,
) -> Iterator[Tensor]:
    """Tokens [B] that continue `prompt` [B, T >= 1], one after the other and without end.

    The prompt is read on the chunks of `prefill`, what follows on those of `plan`; None is the model's own.
    `generator` is one of the CPU, so that a seed draws the same on every device. Raises ValueError for an empty prompt.
    """
    state = prefilled(model, prompt[:, :-1], prefill or model.plan, mode)
    last = prompt[:, -1:]
    while True:
        out = model(last, state, plan=plan or model.plan, mode=mode)
        state, chosen = out.state, choose(out.logits[:, -1], sampling or Sampling(), generator)
        yield chosen
        last = chosen.unsqueeze(1)


def prefilled(model: AtlasModel, prompt: Tensor, plan: ChunkPlan, mode: MemoryMode | str) -> ModelState:
    """The state after `prompt` [B, T >= 0]."""
    state = model.initial_state(prompt.shape[0], plan)
    for first in range(0, prompt.shape[1], PREFILL_TOKENS):
        if first:
            log.info("reads the prompt: %d of %d tokens", first, prompt.shape[1])
        state = model(prompt[:, first : first + PREFILL_TOKENS], state, plan=plan, mode=mode).state
    return state


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """The next token of every sequence [B], from the logits of its last one [B, V]."""
    if sampling.temperature == 0:
        likeliest: Tensor = logits.argmax(-1)
        return likeliest
    scores = logits.double().cpu() / sampling.temperature
    order = scores.argsort(dim=-1, descending=True, stable=True)
    shares = scores.gather(-1, order).softmax(-1)
    before = shares.cumsum(-1) - shares  # probability of the likelier tokens
    rank = torch.arange(shares.shape[-1])
    allowed = (before < sampling.top_p) & (rank < (sampling.top_k or inf))
    allowed[:, 0] = True
    drawn = torch.multinomial(shares * allowed, 1, generator=generator)
    return order.gather(-1, drawn).squeeze(-1).to(logits.device)
