"""How far back attention and memory of each layer reach, and whether attention knows the order of tokens.

A module is called again with what it was given, some of its tokens negated or swapped. In float32, whatever training
computes in: a small effect of a token far back is lost in the last digit of bfloat16.

Legend: B sequences, T tokens, D model width, w tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atlas.models.attention import SlidingWindowAttention
from atlas.models.block import AtlasMAGBlock
from atlas.models.language_model import AtlasModel
from atlas.models.memory import AtlasMemory

NEAR = 8  # tokens that the convolution of a memory may reach behind a chunk


def reach(model: AtlasModel, row: Tensor) -> dict[str, float]:
    """`layer<i>/attention`: how much the last output changes with the older half of the window; `layer<i>/order` with
    the order of two tokens in it; `layer<i>/memory`: outputs behind a chunk with the tokens of it. In root mean squares
    of the outputs. What a row [1, T] is too short for is left out. Without gradients."""
    found: dict[str, float] = {}
    with torch.autocast(row.device.type, enabled=False), _called(model) as calls:
        model.read(row)
    for layer, block in enumerate(model.blocks):
        if not isinstance(block, AtlasMAGBlock):  # of the user's own
            continue
        if block.attention in calls:
            found |= {f"layer{layer}/{name}": size for name, size in _attention(block.attention, calls).items()}
        if block.memory is not None and block.memory in calls:
            found |= {f"layer{layer}/memory": size for size in _memory(block.memory, calls, model)}
    return found


@contextmanager
def _called(model: AtlasModel) -> Iterator[dict[nn.Module | None, Sequence[Any]]]:
    """What attention and memory of the blocks are called with inside."""
    calls: dict[nn.Module | None, Sequence[Any]] = {}
    inner = [one for one in model.modules() if isinstance(one, SlidingWindowAttention | AtlasMemory)]
    hooks = [one.register_forward_pre_hook(lambda one, given: calls.update({one: given})) for one in inner]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _attention(attention: SlidingWindowAttention, calls: dict[nn.Module | None, Sequence[Any]]) -> dict[str, float]:
    given, *others = calls[attention]
    x = torch.randn(given.shape, generator=torch.Generator().manual_seed(0)).to(given)  # no two tokens are the same
    tokens = x.shape[1]
    window = min(attention.window or tokens, tokens)
    if window < 4:
        return {}
    first, last = tokens - window, tokens - 2  # of the tokens before the last that it sees
    older, swapped = x.clone(), x.clone()
    older[:, first : first + window // 2] *= -1
    swapped[:, [first, last]] = x[:, [last, first]]
    calm, of_older, of_swapped = (attention(one, *others)[0][:, -1] for one in (x, older, swapped))
    return {"attention": _change(calm, of_older), "order": _change(calm, of_swapped)}


def _memory(memory: AtlasMemory, calls: dict[nn.Module | None, Sequence[Any]], model: AtlasModel) -> list[float]:
    x, *others = calls[memory]
    chunk, end = min(model.plan.local), min(x.shape[1], model.plan.shard or x.shape[1])
    if chunk + NEAR >= end:
        return []
    other = x.clone()
    other[:, :chunk] *= -1
    calm, changed = (memory(one, *others)[0][:, chunk + NEAR : end] for one in (x, other))
    return [_change(calm, changed)]


def _change(calm: Tensor, changed: Tensor) -> float:
    return ((calm - changed).abs().max() / calm.square().mean().sqrt()).item()
