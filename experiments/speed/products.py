"""The matrix products of a training step: how much arithmetic they are, and how long they alone take.

Three numbers tell how far a step is from the floor: the rate of one large product (the machine's peak), the rate of the
step's own products replayed one by one (what their shapes allow), and the rate of the whole step.

Products are seen one by one as torch runs them, in-place ones and those inside a custom autograd function too.
Operators that are not torch's own are listed, since nobody knows what is inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.speed.race import seconds_of

LAST_TWO = ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "addbmm")  # whose last two tensors are multiplied
# Operators of atlas that multiply no matrices, forward and backward.
WITHOUT_PRODUCTS = ("rms_norm", "swiglu", "gated_branch", "mixed_queries")
FORWARD_PRODUCTS = 2  # of attention: Q K^T and P V
BACKWARD_PRODUCTS = 5  # Q K^T again, and the gradients of P, V, Q and K
REPLAY_SECONDS = 0.02  # per distinct product, at least
REPLAYS = 3
PEAK_WIDTH = {"cpu": 2048, "cuda": 8192}
PEAK_REPEATS = 10


class Spec(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Product(NamedTuple):
    """A call of an operator; equal calls are counted, not kept."""

    operator: Any
    arguments: tuple[Any, ...]  # flattened: Spec for a tensor
    structure: str


class Recorder(TorchDispatchMode):
    """`with Recorder() as seen: step()`"""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[Product] = Counter()
        self.structures: dict[str, Any] = {}
        self.foreign: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        multiplies = not func.overloadpacket.__name__.startswith(WITHOUT_PRODUCTS)
        if func.namespace not in ("aten", "prim", "prims", "profiler") and multiplies:
            self.foreign.add(str(func))
        if flops_per_call(func, args) is not None:
            leaves, structure = pytree.tree_flatten((args, kwargs or {}))
            text = str(structure)
            self.structures[text] = structure
            self.counts[Product(func, tuple(map(_spec, leaves)), text)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> int:
        """Multiplications and additions of all products."""
        total = 0
        for product, count in self.counts.items():
            args, _ = pytree.tree_unflatten(list(product.arguments), self.structures[product.structure])
            total += count * (flops_per_call(product.operator, args) or 0)
        return total

    def replay_seconds(self, device: torch.device) -> float:
        """What the products alone take: each distinct one timed by itself, times its count."""
        return sum(count * self._replay(product, device) for product, count in self.counts.items())

    def _replay(self, product: Product, device: torch.device) -> float:
        leaves = [_tensor(leaf) if isinstance(leaf, Spec) else leaf for leaf in product.arguments]
        args, kwargs = pytree.tree_unflatten(leaves, self.structures[product.structure])
        return typical_seconds(lambda: product.operator(*args, **kwargs), device)


def typical_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median of at least `REPLAYS` timed calls that together take at least `REPLAY_SECONDS`."""
    seconds_of(call, device)
    taken: list[float] = []
    while len(taken) < REPLAYS or sum(taken) < REPLAY_SECONDS:
        taken.append(seconds_of(call, device))
    return sorted(taken)[len(taken) // 2]


def flops_per_call(func: Any, args: Any) -> int | None:
    """Two per multiplication of a product; half of them for causal attention. None for any other operator."""
    name = func.overloadpacket.__name__
    tensors = [arg for arg in args if isinstance(arg, (Tensor, Spec))]
    if name in LAST_TWO:
        return 2 * prod(tensors[-2].shape) * tensors[-1].shape[-1]
    if name.startswith("_scaled_dot_product"):
        backward = "_backward" in name
        query, key = tensors[backward], tensors[backward + 1]
        full = 2 * prod(query.shape) * key.shape[-2] * (BACKWARD_PRODUCTS if backward else FORWARD_PRODUCTS)
        return full // 2 if _is_causal(func, args) else full
    return None


def _is_causal(func: Any, args: Any) -> bool:
    place = [argument.name for argument in func._schema.arguments].index("is_causal")
    return len(args) > place and args[place] is True


def peak_flops(device: torch.device) -> float:
    """Floating-point operations per second of one large square product, in the precision that steps are run in."""
    width = PEAK_WIDTH[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    seconds_of(lambda: left @ right, device)
    best = min(seconds_of(lambda: left @ right, device) for _ in range(PEAK_REPEATS))
    return 2 * width**3 / best


def _spec(leaf: Any) -> Any:
    return Spec(tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf


def _tensor(spec: Spec) -> Tensor:
    """Values between 0 and 1 in the same layout; zeros where they are not floating-point."""
    room = 1 + sum((size - 1) * step for size, step in zip(spec.shape, spec.stride, strict=True))
    fill = torch.rand if spec.dtype.is_floating_point else torch.zeros
    return fill(max(room, 1), device=spec.device).to(spec.dtype).as_strided(spec.shape, spec.stride)
