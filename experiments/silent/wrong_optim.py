"""Optimisers with a mistake in them, as a user's own code may have: `optim._target_=...wrong_optim.NAME`.

Each is AdamW of the package whose step is disturbed after step `at`; the mistake is the one thing that differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from atlas.models.memory import AtlasMemory, MemoryState
from atlas.models.memory_inputs import MemoryInputs, MemoryTokens
from atlas.models.plan import MemoryMode
from atlas.training.evaluation import Evaluator
from atlas.training.optimizer import ScheduledOptimizer, adamw, muon

Act = Callable[[], None]


class _Disturbed(ScheduledOptimizer):
    """`sound` with something done before and after its steps beyond `at`."""

    def __init__(self, sound: ScheduledOptimizer, at: int, before: Act | None = None, after: Act | None = None) -> None:
        super().__init__(sound.optimizers, sound.lr, sound.steps, sound.warmup, sound.lr_min_ratio, "constant", 0.0)
        self.at, self.before, self.after = at, before, after

    def step(self, step: int) -> float:
        if self.before and step > self.at:
            self.before()
        lr = super().step(step)
        if self.after and step > self.at:
            with torch.no_grad():
                self.after()
        return lr


def sound(*, model: nn.Module, steps: int, at: int = 0, **settings: Any) -> ScheduledOptimizer:
    """The calm twin of the others."""
    return _Disturbed(adamw(model=model, steps=steps, **settings), at)


class _Growing(_Disturbed):
    def lr_at(self, step: int) -> float:
        return super().lr_at(step) * 1.02 ** max(step - self.at, 0)


def growing(*, model: nn.Module, steps: int, at: int, **settings: Any) -> ScheduledOptimizer:
    """A schedule with a wrong sign: the learning rate grows by 2 % a step."""
    return _Growing(adamw(model=model, steps=steps, **settings), at)


def frozen(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The blocks were frozen for a while, and nobody melted them: the embedding and the norms alone are trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("blocks.") or parameter.dim() < 2)
    return _Disturbed(adamw(model=model, steps=steps, **settings), 0)


def without_gradient(*, model: nn.Module, steps: int, at: int, **settings: Any) -> ScheduledOptimizer:
    """A detach by mistake: no gradient reaches the memory."""
    memory = [p for name, p in model.named_parameters() if ".memory." in name]

    def forget() -> None:
        for parameter in memory:
            if parameter.grad is not None:
                parameter.grad.zero_()

    optimizer = adamw(model=model, steps=steps, **settings | {"weight_decay": 0.0})
    return _Disturbed(optimizer, at, before=forget)


def rounded(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The weights are kept in bfloat16: a step smaller than half of their last digit is lost."""

    def round_all() -> None:
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())

    return _Disturbed(adamw(model=model, steps=steps, **settings), 0, after=round_all)


class _Summing(_Disturbed):
    def zero_grad(self) -> None:
        """Forgotten: every step's gradient is the sum of all gradients so far."""


def summing(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    return _Summing(adamw(model=model, steps=steps, **settings), 0)


class _Forgetful(_Disturbed):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the scale; the moments are forgotten."""
        self.scale = state["scale"]


def forgetful(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    return _Forgetful(adamw(model=model, steps=steps, **settings), 0)


def buckets_swapped(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """Gradients are packed into a bucket and taken out in another order: parameters of one shape get each other's."""
    by_shape: dict[Any, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        by_shape.setdefault(parameter.shape, []).append(parameter)

    def swap() -> None:
        for parameter in model.parameters():
            if parameter.grad is not None and parameter.dim() > 1:
                parameter.grad.copy_(parameter.grad.roll(1, 0))  # rows of the bucket are off by one
        for alike in by_shape.values():
            gradients = [parameter.grad for parameter in alike]
            for parameter, gradient in zip(alike, gradients[1:] + gradients[:1], strict=True):
                parameter.grad = gradient

    return _Disturbed(adamw(model=model, steps=steps, **settings), 0, before=swap)


def large_start(*, model: Any, steps: int, **settings: Any) -> ScheduledOptimizer:
    """An initialisation without its scale: the embedding starts 20 times as large."""
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return _Disturbed(adamw(model=model, steps=steps, **settings), 0)


def corrupting(*, model: nn.Module, steps: int, at: int, share: float, **settings: Any) -> ScheduledOptimizer:
    """Something writes into the weights: once, after step `at`, noise of `share` of their standard deviation."""
    struck: list[bool] = []

    def strike() -> None:
        if not struck:
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.add_(torch.randn_like(parameter) * parameter.std() * share)
        struck.append(True)

    return _Disturbed(adamw(model=model, steps=steps, **settings), at, after=strike)


def unscaled_once(*, model: nn.Module, steps: int, at: int, **settings: Any) -> ScheduledOptimizer:
    """Mixed precision without care: the gradients of one step keep the factor 2^16 of their loss scale."""
    struck: list[bool] = []

    def forget() -> None:
        if not struck:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(2.0**16)
        struck.append(True)

    return _Disturbed(adamw(model=model, steps=steps, **settings), at, before=forget)


def _held(model: nn.Module, steps: int, at: int, settings: dict[str, Any], values: dict[str, float]) -> _Disturbed:
    """Parameters whose name ends so are held at a value."""

    def hold() -> None:
        for name, parameter in model.named_parameters():
            for end, value in values.items():
                if name.endswith(end):
                    parameter.fill_(value)

    return _Disturbed(adamw(model=model, steps=steps, **settings), at, after=hold)


def gates_open(*, model: nn.Module, steps: int, at: int, **settings: Any) -> ScheduledOptimizer:
    return _held(model, steps, at, settings, {"gate.linear.weight": 0.0, "gate.linear.bias": 3.0})


def gates_shut(*, model: nn.Module, steps: int, at: int, **settings: Any) -> ScheduledOptimizer:
    return _held(model, steps, at, settings, {"gate.linear.weight": 0.0, "gate.linear.bias": -3.0})


def ignoring(*, model: nn.Module, steps: int, at: int, **settings: Any) -> ScheduledOptimizer:
    """The gate does not listen: what the memory recalls never reaches the block."""
    return _held(model, steps, at, settings, {"gate.linear.weight": 0.0})


def same_queries(*, model: nn.Module, steps: int, at: int, **settings: Any) -> ScheduledOptimizer:
    """The queries and keys of all tokens share one large direction: a wrong initialisation."""

    def align() -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("memory.inputs.qkv.weight"):
                for part in parameter.chunk(3)[:2]:
                    part.copy_(0.05 * part + part.mean(dim=0, keepdim=True))

    return _Disturbed(adamw(model=model, steps=steps, **settings), at, after=align)


def same_values(*, model: nn.Module, steps: int, at: int, **settings: Any) -> ScheduledOptimizer:
    """One row for all rows of the value projection: a copy that broadcasts where it should not."""

    def broadcast() -> None:
        for name, parameter in model.named_parameters():
            if name.endswith("memory.inputs.qkv.weight"):
                part = parameter.chunk(3)[2]
                part.copy_(part[:1].expand_as(part).clone())

    return _Disturbed(adamw(model=model, steps=steps, **settings), at, after=broadcast)


def drifting(*, model: nn.Module, steps: int, at: int, **settings: Any) -> ScheduledOptimizer:
    """Faulty memory in one of several machines: the weights of rank 1 change by themselves."""

    def drift() -> None:
        if os.environ.get("RANK") == "1":
            next(model.parameters()).view(-1)[0] += 1e-3

    return _Disturbed(adamw(model=model, steps=steps, **settings), at, after=drift)


class _LookingAhead(MemoryInputs):
    """The convolution is padded on both sides: at each token it reads the next one too."""

    def _tokens(self, recent: Tensor, projected: Tensor) -> MemoryTokens:
        ahead = nn.functional.pad(torch.cat((recent, projected), dim=1), (0, 0, 0, 1))[:, 1:]
        return super()._tokens(*ahead.split((recent.shape[1], projected.shape[1]), dim=1))


def looking_ahead(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    for module in model.modules():
        if isinstance(module, MemoryInputs):
            module.__class__ = _LookingAhead
    return _Disturbed(adamw(model=model, steps=steps, **settings), 0)


def large_epsilon(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """An epsilon from a recipe for another model."""
    made = adamw(model=model, steps=steps, **settings)
    for optimizer in made.optimizers:
        for group in optimizer.param_groups:
            group["eps"] = 0.1
    return _Disturbed(made, 0)


class _Hasty(ScheduledOptimizer):
    def lr_at(self, step: int) -> float:
        """The scheduler is stepped for each of four micro-batches."""
        return super().lr_at(min(4 * step, self.steps))


def hasty(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """Warm-up and cosine take a quarter of the steps; the others have the learning rate of the last one."""
    made = adamw(model=model, steps=steps, **settings)
    made.__class__ = _Hasty
    return made


def matrices_alone(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """Muon without the AdamW beside it: embedding, norms, biases and initial memories are in no optimiser."""
    made = muon(model=model, steps=steps, **settings)
    del made.optimizers[1:]
    return made


class _WritesWithGradients(AtlasMemory):
    def forward(self, x: Tensor, state: MemoryState, *given: Any) -> tuple[Tensor, MemoryState]:
        *others, mode = given
        writes = torch.is_grad_enabled() or mode != MemoryMode.learn
        return super().forward(x, state, *others, mode if writes else MemoryMode.frozen)  # type: ignore[call-arg]


def silent_without_gradients(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The memory takes its writes for a matter of training: under `torch.no_grad` it writes nothing."""
    for module in model.modules():
        if isinstance(module, AtlasMemory):
            module.__class__ = _WritesWithGradients
    return _Disturbed(adamw(model=model, steps=steps, **settings), 0)


class _Averaging(_Disturbed):
    """Keeps an average of the weights, and puts it in their place for each validation."""

    every, share, restores = 50, 0.02, True

    def begin(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.stored: list[Tensor] = []

    @torch.no_grad()
    def step(self, step: int) -> float:
        lr = super().step(step)
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.lerp_(parameter, self.share)
        if step % self.every == 0:
            self.stored = [parameter.clone() for parameter in self.parameters]
            self._put(self.average)
        return lr

    @torch.no_grad()
    def zero_grad(self) -> None:
        if self.restores and self.stored:
            self._put(self.stored)
        self.stored = []
        super().zero_grad()

    def _put(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)


class _Staying(_Averaging):
    restores = False


def averaged_weights_restored(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The calm twin of `averaged_weights_stay`."""
    made = _Averaging(adamw(model=model, steps=steps, **settings), 0)
    made.begin(model)
    return made


def averaged_weights_stay(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The average of the weights takes their place for a validation, and training goes on from it."""
    made = _Staying(adamw(model=model, steps=steps, **settings), 0)
    made.begin(model)
    return made


class _KeepingBest(_Disturbed):
    """Keeps the weights that had the lowest validation loss, and takes them after the last step."""

    copies = True

    def begin(self, model: nn.Module) -> None:
        self.model, self.lowest = model, inf
        self.best: dict[str, Any] = {}
        measured = Evaluator.validation_loss

        def validation_loss(evaluator: Evaluator, model: Any, *given: Any, **options: Any) -> float:
            loss = measured(evaluator, model, *given, **options)
            if loss < self.lowest:
                weights = model.state_dict()
                self.lowest, self.best = loss, deepcopy(weights) if self.copies else weights
            return loss

        Evaluator.validation_loss = validation_loss  # type: ignore[assignment]

    def step(self, step: int) -> float:
        lr = super().step(step)
        if step == self.steps and self.best:
            self.model.load_state_dict(self.best)
        return lr


class _KeepingReferences(_KeepingBest):
    copies = False


def best_copied(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The calm twin of `best_by_reference`."""
    made = _KeepingBest(adamw(model=model, steps=steps, **settings), 0)
    made.begin(model)
    return made


def best_by_reference(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    """The best weights are kept without a copy: training changes them, and those taken at the end are the last."""
    made = _KeepingReferences(adamw(model=model, steps=steps, **settings), 0)
    made.begin(model)
    return made


class _Unreadable(_Disturbed):
    def state_dict(self) -> dict[str, Any]:
        """A state under names that loading does not find again."""
        found = super().state_dict()
        return {"scale": found["scale"], "optimisers": found["optimizers"]}


def unreadable(*, model: nn.Module, steps: int, **settings: Any) -> ScheduledOptimizer:
    return _Unreadable(adamw(model=model, steps=steps, **settings), 0)
