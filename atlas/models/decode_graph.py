"""Decoding one token at a time on fixed memory, and recorded as CUDA graphs: the host launches the hundreds of kernels
of a token more slowly than the device runs them.

A graph repeats what was recorded, so a step that takes another way needs a graph of its own: the first token of a
shard, the last one of a chunk. What differs only by a number needs none: the position is a tensor, and the numbers of
tokens of open chunks go on by one. Each graph is compared with the step without it when it is recorded.

Legend: B sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atlas.kernels import gpu
from atlas.kernels.gpu import Capture
from atlas.models.language_model import AtlasModel, ModelState
from atlas.models.plan import ChunkPlan, MemoryMode

CLOSE = 1e-3  # difference of logits that is rounding, relative to the largest


class Recorded(NamedTuple):
    logits: Tensor  # [B, vocabulary], written by every replay
    replay: Callable[[], None]
    before: list[int]  # numbers of the state
    after: list[int]


class DecodeGraph:
    """`step(tokens, state)` as the model would do it. The state that it returns lies on fixed memory and is overwritten
    by the next step. Without `capture`, and for a model whose state grows (`model.window=0`), there is no graph."""

    def __init__(self, model: AtlasModel, plan: ChunkPlan, mode: MemoryMode | str, capture: Capture | None) -> None:
        self.model, self.plan, self.mode, self._capture = model, plan, mode, capture
        self._recorded: dict[tuple[Any, ...], Recorded] = {}
        self._tensors: list[Tensor] = []  # of the state
        self._structure: Any = None
        self._are_tensors: list[bool] = []  # its leaves, in order
        self._token = self._place = torch.empty(0)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """tokens [B, 1] -> logits [B, vocabulary] and the state after them."""
        if self._capture is None or gpu.graphless() or not self.model.windowed:
            return self._plainly(tokens, state)
        numbers = self._take(tokens, state)
        kind = self._kind(numbers)
        if kind not in self._recorded:
            return self._record(self._capture, kind, numbers)
        found = self._recorded[kind]
        found.replay()
        after = [
            now + 1 if then + 1 == left else left
            for now, then, left in zip(numbers, found.before, found.after, strict=True)
        ]
        return found.logits, self._state(after)

    def _plainly(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        out = self.model(tokens, state, plan=self.plan, mode=self.mode)
        return out.logits[:, -1], out.state

    def _take(self, tokens: Tensor, state: ModelState) -> list[int]:
        """Copy to the fixed memory what does not lie there; returns the numbers of the state."""
        leaves, self._structure = pytree.tree_flatten(state)
        self._are_tensors = [isinstance(leaf, Tensor) for leaf in leaves]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if list(map(_described, tensors)) != list(map(_described, self._tensors)):
            self._tensors = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in tensors]
            self._token = torch.empty_like(tokens)
            self._place = torch.zeros((), dtype=torch.float64, device=tokens.device)
            self._recorded = {}
        for fixed, given in zip(self._tensors, tensors, strict=True):
            if fixed is not given:
                fixed.copy_(given)
        self._token.copy_(tokens)
        self._place.fill_(state.position)
        return [leaf for leaf in leaves if not isinstance(leaf, Tensor)]

    def _kind(self, numbers: list[int]) -> tuple[Any, ...]:
        """Equal for states that go the same way: of every number, whether it stands at the end of anything."""
        last = self.plan.lasting.period if self.plan.lasting else 1
        periods = {*self.plan.local, self.plan.global_size, self.plan.shard or 1, last}
        return tuple((not n, n % p == 0, n % p == p - 1, n >= p) for n in numbers for p in sorted(periods))

    def _record(self, capture: Capture, kind: tuple[Any, ...], numbers: list[int]) -> tuple[Tensor, ModelState]:
        state = self._state(numbers)
        wanted, after = self._plainly(self._token, state)
        left, _ = pytree.tree_flatten(after)
        shapes = [_described(leaf) for leaf in left if isinstance(leaf, Tensor)]
        if shapes != list(map(_described, self._tensors)):  # a window of a learning rule that still fills
            return wanted, after
        kept = [part.clone() for part in self._tensors]
        try:
            logits, replay = capture(lambda: self._work(state))
            self._restore(kept)  # a capture may run the work
            replay()
            if not (logits - wanted).abs().max() <= CLOSE * wanted.abs().max():
                raise RuntimeError("its logits are not those of the step without it")
        except Exception as error:  # of the device, of many types
            self._restore(kept)
            gpu.give_up_graph("a token", error)
            return wanted, after
        ended = [leaf for leaf in left if not isinstance(leaf, Tensor)]
        self._recorded[kind] = Recorded(logits, replay, numbers, ended)
        return logits, self._state(ended)

    def _work(self, state: ModelState) -> Tensor:
        """The step on the fixed memory, which holds the state after it."""
        out = self.model(self._token, state, plan=self.plan, mode=self.mode, place=self._place)
        left = [leaf for leaf in pytree.tree_leaves(out.state) if isinstance(leaf, Tensor)]
        own = {part.untyped_storage().data_ptr() for part in self._tensors}
        # A result may lie on the fixed memory itself: nothing is overwritten before all is read.
        values = [part.clone() if part.untyped_storage().data_ptr() in own else part for part in left]
        self._restore(values)
        logits: Tensor = out.logits[:, -1]
        return logits

    def _restore(self, values: list[Tensor]) -> None:
        for fixed, value in zip(self._tensors, values, strict=True):
            fixed.copy_(value)

    def _state(self, numbers: list[int]) -> ModelState:
        """The state on the fixed memory with these numbers."""
        tensors, rest = iter(self._tensors), iter(numbers)
        leaves = [next(tensors) if is_tensor else next(rest) for is_tensor in self._are_tensors]
        made: ModelState = pytree.tree_unflatten(leaves, self._structure)
        return made


def _described(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device
