"""Sliding-window attention: the banded form against a masked full softmax, with state and prefix.

Legend: B sequences, T tokens, H heads, d head width, w window, P persistent keys.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atlas.models.attention import SlidingWindowAttention
from atlas.models.persistent import PersistentMemory
from atlas.ops.rotary import Rotary

BATCH, TOKENS, HEADS, WIDTH, PREFIX = 2, 19, 2, 12, 3


def make(window: int, prefix: bool) -> tuple[SlidingWindowAttention, PersistentMemory | None, Tensor]:
    torch.manual_seed(0)
    attention = SlidingWindowAttention(WIDTH, HEADS, window).double()
    persistent = PersistentMemory(HEADS, PREFIX, WIDTH // HEADS).double() if prefix else None
    return attention, persistent, torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)


def full_softmax(attention: SlidingWindowAttention, persistent: PersistentMemory | None, x: Tensor) -> Tensor:
    """Every query against every key, written out with a mask: [B, T, D]."""
    query, key, value = attention.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    query, key = Rotary(0)(query), Rotary(0)(key)
    tokens = x.shape[1]
    distance = torch.arange(tokens).unsqueeze(1) - torch.arange(tokens)
    seen = (distance >= 0) & ((distance < attention.window) if attention.window else True)
    scores = (query @ key.mT).masked_fill(~seen, float("-inf"))
    if persistent is not None:
        scores = torch.cat((query @ persistent.keys.mT, scores), dim=-1)
        value = torch.cat((persistent.values.expand(x.shape[0], -1, -1, -1), value), dim=2)
    out = torch.softmax(scores / (WIDTH // HEADS) ** 0.5, dim=-1) @ value
    return out.transpose(1, 2).flatten(2)


def run(
    attention: SlidingWindowAttention, persistent: PersistentMemory | None, x: Tensor, cuts: tuple[int, ...]
) -> Tensor:
    state, outputs, done = attention.initial_state(BATCH), [], 0
    for end in (*cuts, x.shape[1]):
        out, state = attention(x[:, done:end], state, Rotary(done), persistent)
        outputs.append(out)
        done = end
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("window", [0, 1, 4, 7, 40])
@pytest.mark.parametrize(
    "cuts", [(), (1,), (5, 6), (4, 8, 16), tuple(range(1, TOKENS))], ids=lambda cuts: str(len(cuts))
)
def test_it_equals_the_masked_softmax_and_its_gradients(window: int, prefix: bool, cuts: tuple[int, ...]) -> None:
    attention, persistent, x = make(window, prefix)
    fast, slow = run(attention, persistent, x, cuts), full_softmax(attention, persistent, x)
    torch.testing.assert_close(fast, slow)
    inputs = [x, attention.qkv.weight, *(persistent.parameters() if persistent else ())]
    weight = torch.randn_like(fast)
    found, expected = (torch.autograd.grad((out * weight).sum(), inputs) for out in (fast, slow))
    torch.testing.assert_close(found, expected)


def test_nothing_beyond_the_window_is_seen() -> None:
    attention, persistent, x = make(4, True)
    out = run(attention, persistent, x, ())
    (gradient,) = torch.autograd.grad(out[:, 10].square().sum(), x)
    reached = gradient.abs().sum((0, 2)).nonzero().flatten().tolist()
    assert reached == [7, 8, 9, 10]


def test_the_state_is_constant_in_size() -> None:
    attention, persistent, x = make(4, True)
    state = attention.initial_state(BATCH)
    for end in (2, 9, 19):
        _, after = attention(x[:, :end], state, Rotary(0), persistent)
        assert [field.shape for field in after] == [field.shape for field in state]
