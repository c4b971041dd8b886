"""Decoding: prefill of a prompt in large pieces, then one token at a time from the carried state.

Legend: B sequences, T tokens.

Time and memory per token do not depend on the number of tokens read: attention keeps its window, the memories keep
their weights and the open chunk. A model without a window (`model.window=0`) keeps every token. On one grid of chunks,
decoding gives the logits of a single pass over prompt and continuation, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isfinite

import torch
from torch import Tensor

from atlas.config import require
from atlas.config.console import log
from atlas.kernels.gpu import Capture
from atlas.models.decode_graph import DecodeGraph
from atlas.models.language_model import AtlasModel, ModelState
from atlas.models.plan import ChunkPlan, MemoryMode

PREFILL_TOKENS = 1024  # of a prompt read at once: limits peak memory


@dataclass(frozen=True)
class Sampling:
    """Drawing the next token: softmax(logits / temperature), restricted to `top_k` and `top_p`."""

    temperature: float = 1.0  # 0 = the most likely token
    top_k: int = 0  # number of most likely tokens that can be drawn; 0 = all
    top_p: float = 1.0  # the fewest most likely tokens whose probabilities sum to at least this


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
    capture: Capture | None = None,
) -> Iterator[Tensor]:
    """Endless iterator of tokens [B] that continue `prompt` [B, T >= 1].

    The prompt is read with the chunks of `prefill`, its continuation with those of `plan`; None: the model's plan.
    `generator` is on the CPU, so that a seed gives the same tokens on every device. `capture` records steps as graphs,
    see `DecodeGraph`. Raises ValueError for an empty prompt.
    """
    state = prefilled(model, prompt[:, :-1], prefill or model.plan, mode)
    last = prompt[:, -1:]
    graph = DecodeGraph(model, plan or model.plan, mode, capture)
    while True:
        logits, state = graph.step(last, state)
        chosen = choose(logits, sampling or Sampling(), generator)
        yield chosen
        last = chosen.unsqueeze(1)


def prefilled(model: AtlasModel, prompt: Tensor, plan: ChunkPlan, mode: MemoryMode | str) -> ModelState:
    """The state after `prompt` [B, T >= 0]."""
    state = model.initial_state(prompt.shape[0], plan)
    for first in range(0, prompt.shape[1], PREFILL_TOKENS):
        if first:
            log.info("reads the prompt: %d of %d tokens", first, prompt.shape[1])
        state = model.read(prompt[:, first : first + PREFILL_TOKENS], state, plan=plan, mode=mode).state
    return state


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """The next token of each sequence [B], from the logits of its last token [B, vocabulary].

    Raises `ConfigError` where these are not finite.
    """
    highest = logits.amax().item()
    require(isfinite(highest), "logits", highest, "finite: the weights or what the memory has learnt have overflowed")
    if sampling.temperature == 0:
        likeliest: Tensor = logits.argmax(-1)
        return likeliest
    scores = logits.double().cpu() / sampling.temperature
    order = scores.argsort(dim=-1, descending=True, stable=True)
    shares = scores.gather(-1, order).softmax(-1)
    before = shares.cumsum(-1) - shares  # probability of all more likely tokens
    rank = torch.arange(shares.shape[-1])
    allowed = (before < sampling.top_p) & (rank < (sampling.top_k or inf))
    allowed[:, 0] = True
    drawn = torch.multinomial(shares * allowed, 1, generator=generator)
    return order.gather(-1, drawn).squeeze(-1).to(logits.device)
