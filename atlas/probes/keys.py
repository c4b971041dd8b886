"""Keys for the two key-level probes: random unit vectors, and those that the model's memories compute from text.

Legend: B draws, T tokens, D model width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.data.needles import Tokens
from atlas.models.language_model import AtlasModel
from atlas.models.memory import AtlasMemory
from atlas.models.memory_inputs import MemoryTokens
from atlas.models.persistent import PersistentMemory


@dataclass(frozen=True)
class MemoryLayer:
    """The memory of one block, with the projections before it."""

    index: int
    memory: AtlasMemory
    persistent: PersistentMemory

    @property
    def heads(self) -> int:
        return self.memory.heads

    @property
    def head_width(self) -> int:
        return self.persistent.keys.shape[-1]


@dataclass(frozen=True)
class SeenTokens:
    """Keys, values and rates that the memory of one block computes from a text."""

    x: Tensor  # [B, T, D] the memory's input
    key: Tensor  # [B, T, H, d] unit norm
    value: Tensor  # [B, T, H, d]
    rate_logits: Tensor  # [B, T, memories, H]: the inner rate before its sigmoid

    def part(self, first: int, end: int) -> SeenTokens:
        """Tokens `first` to `end`, `end` excluded."""
        return SeenTokens(*(getattr(self, field.name)[:, first:end] for field in fields(self)))

    def repeat(self, count: int) -> SeenTokens:
        """`count` rows; if there are fewer, they are used again in turn."""
        rows = torch.arange(count, device=self.key.device) % self.key.shape[0]
        return SeenTokens(*(getattr(self, field.name)[rows] for field in fields(self)))

    def with_rate_logit(self, place: int, logit: float) -> SeenTokens:
        """Every memory's rate at a place: infinity is `rate_max`, its negative is 0."""
        logits = self.rate_logits.clone()
        logits[:, place] = logit
        return replace(self, rate_logits=logits)


def memory_layers(model: AtlasModel) -> list[MemoryLayer]:
    """Blocks that have a memory."""
    return [
        MemoryLayer(index, block.memory, block.persistent)
        for index, block in enumerate(model.mag_blocks)
        if block.memory is not None and block.persistent is not None
    ]


def unit_vectors(rng: np.random.Generator, shape: Sequence[int], like: Tensor) -> Tensor:
    """Independent directions, uniform on the sphere; on the device and in the precision of `like`."""
    return F.normalize(torch.from_numpy(rng.standard_normal(tuple(shape))).to(like), dim=-1)


def text_rows(rng: np.random.Generator, text: Tokens, count: int, length: int, device: torch.device) -> Tensor:
    """[count, length] token ids from random places of a text that is at least as long."""
    starts = rng.integers(0, len(text) - length + 1, (count, 1), dtype=np.int64)
    return torch.from_numpy(text[starts + np.arange(length)].astype(np.int64)).to(device)


def seen_tokens(model: AtlasModel, tokens: Tensor) -> list[SeenTokens]:
    """Keys, values and rates that every memory computes from tokens [B, T], in a pass of the whole model."""
    layers = memory_layers(model)
    caught: list[tuple[Tensor, MemoryTokens]] = []
    rates: list[Tensor] = []
    hooks = []
    for layer in layers:
        inputs = layer.memory.inputs
        hooks.append(inputs.register_forward_hook(lambda _m, arguments, out: caught.append((arguments[0], out[0]))))
        hooks.append(inputs.rate.register_forward_hook(lambda _m, _a, out: rates.append(out)))
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        SeenTokens(
            x,
            _by_head(seen.key, layer.heads),
            _by_head(seen.value, layer.heads),
            rate.unflatten(-1, (-1, layer.heads)),
        )
        for layer, (x, seen), rate in zip(layers, caught, rates, strict=True)
    ]


@contextmanager
def substituted(layer: MemoryLayer, tokens: SeenTokens) -> Iterator[None]:
    """The layer's memory takes these keys, values and rates in place of those that it computes from its input.

    Everything after them is the model's own: chunks, shards, learning rule, bounds, resets, modes.
    """
    inputs = layer.memory.inputs
    key, value = (field.transpose(1, 2).flatten(0, 1) for field in (tokens.key, tokens.value))
    logits = tokens.rate_logits.flatten(-2)
    replaced = MemoryTokens(key, key, value)
    hooks = [
        inputs.register_forward_hook(lambda _m, _a, out: (replaced, out[1])),
        inputs.rate.register_forward_hook(lambda _m, _a, _out: logits),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """[B * H, T, d] -> [B, T, H, d]."""
    by_head: Tensor = rows.unflatten(0, (-1, heads))
    return by_head.transpose(1, 2)
