"""Context parallelism by shards: neighbouring ranks share every sequence, and each reads a part of whole shards.

Local memories and the sums of the Q-K projection start anew at every shard. So a layer needs little of the tokens
before its part, and of a size that does not depend on their number: it is handed on from rank to rank, and its gradient
comes back. A rank runs layer l when the rank before it has handed layer l on: a wavefront.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

State = TypeVar("State")
BEFORE, AFTER = -1, 1  # the neighbours


class Sending(Protocol):
    def wait(self) -> object: ...


class Relay:
    """Part number `part` of the `parts` of every sequence is this rank's.

    `send(tensor, to)` and `receive(tensor, source)` are between neighbours and of tensors on the CPU; the first only
    starts, the second waits.
    """

    def __init__(
        self, part: int, parts: int, send: Callable[[Tensor, int], Sending], receive: Callable[[Tensor, int], None]
    ) -> None:
        self.part, self.parts = part, parts
        self._send, self._receive = send, receive
        self._sending: defaultdict[int, list[tuple[Sending, Tensor]]] = defaultdict(list)

    @property
    def begins(self) -> bool:
        """Whether this rank has the first part, before which there is nothing."""
        return self.part == 0

    def take(self, x: Tensor, like: State) -> tuple[Tensor, State]:
        """`x` and what the rank before hands on of this layer: tensors and numbers in the structure of `like`."""
        leaves, structure = pytree.tree_flatten(like)
        x, found = _Take.apply(x, _joined(leaves, x), self)  # type: ignore[no-untyped-call]
        parts = found.split([leaf.numel() if isinstance(leaf, Tensor) else 1 for leaf in leaves])
        state: State = pytree.tree_unflatten(map(_as, parts, leaves), structure)
        return x, state

    def hand(self, x: Tensor, state: object) -> Tensor:
        """`x`, after the rank behind this one was sent the state of this layer; its gradient will be waited for."""
        if self.part == self.parts - 1:
            return x
        handed: Tensor = _Hand.apply(x, _joined(pytree.tree_leaves(state), x), self)  # type: ignore[no-untyped-call]
        return handed

    def send(self, tensor: Tensor, to: int) -> None:
        sent = tensor.detach().cpu().contiguous()
        self._sending[to].append((self._send(sent, to), sent))  # which must live until it is sent

    def receive(self, like: Tensor, source: int) -> Tensor:
        found = torch.empty(like.shape, dtype=like.dtype)
        self._receive(found, source)
        for sending, _ in self._sending.pop(source, ()):  # the neighbour has them: it sends after it has received
            sending.wait()
        return found.to(like.device)


def _joined(leaves: list[Any], x: Tensor) -> Tensor:
    """One vector in the precision of x, in which flags and small numbers are exact."""
    return torch.cat([torch.as_tensor(leaf, dtype=x.dtype, device=x.device).flatten() for leaf in leaves])


def _as(part: Tensor, like: Any) -> Any:
    return part.view(like.shape).to(like.dtype) if isinstance(like, Tensor) else type(like)(part.item())


class _Take(torch.autograd.Function):
    """x passes through, so that the backward pass comes by here after the layer: then the gradient is sent back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, like: Tensor, relay: Relay) -> tuple[Tensor, Tensor]:
        ctx.relay = relay
        return x.view_as(x), relay.receive(like, BEFORE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor, of_state: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.relay.send(of_state, BEFORE)
        return of_x, torch.zeros_like(of_state), None  # the initial state has a gradient too: DDP waits for it


class _Hand(torch.autograd.Function):
    """x passes through, so that the backward pass comes by here before the layer: there the gradient is received."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor, relay: Relay) -> Tensor:
        ctx.relay, ctx.size = relay, state.shape
        relay.send(state, AFTER)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_x: Tensor) -> tuple[Tensor, Tensor, None]:
        return of_x, ctx.relay.receive(of_x.new_empty(ctx.size), AFTER), None
