"""Fault injection: rehearses failures in a run (`debug.inject=KIND@STEP[:SIZE][:always]`).

A fault strikes in the first segment of a run; with `always`, also when its step is repeated after a rollback. It
depends on step and segment alone, so it is the same in a resumed run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from atlas.config import VOCABULARY, ConfigError, require
from atlas.data.batch import Batch
from atlas.training.state import TrainState

KINDS = {
    "bad_batch": "the targets of the batch become random tokens for SIZE steps (default 20)",
    "lr_burst": "the learning rate is SIZE times as high for 5 steps (default 100)",
    "weights": "noise of SIZE times their own standard deviation is added to the weights (default 1)",
    "gradient": "a gradient of the backward pass is SIZE times as large (default 1000)",
    "nan_loss": "the loss weights of the batch become NaN",
    "nan_gradient": "a gradient of the backward pass becomes NaN",
    "nan_memory": "the initial state of a memory, W_init, becomes NaN",
}
DEFAULT_SIZES = {"bad_batch": 20.0, "lr_burst": 100.0, "weights": 1.0, "gradient": 1000.0}
BURST_STEPS = 5
_SPEC = re.compile(r"(?P<kind>\w+)@(?P<step>\d+)(:(?P<size>\d+(\.\d+)?(e\+?\d+)?))?(?P<always>:always)?")


@dataclass(frozen=True)
class Fault:
    kind: str
    step: int
    size: float
    always: bool

    @property
    def steps(self) -> int:
        """Number of steps in which it strikes."""
        return {"bad_batch": int(self.size), "lr_burst": BURST_STEPS}.get(self.kind, 1)


def parse_fault(text: str, last_step: int, *, has_memory: bool = True) -> Fault:
    """Parse `KIND@STEP[:SIZE][:always]`. Raises `ConfigError`, also for a fault that never strikes."""
    match = _SPEC.fullmatch(text)
    known = text.partition("@")[0] in KINDS
    if match is None or not known:
        one_of = "STEP a whole number and SIZE a number" if known else f"KIND one of {', '.join(KINDS)}"
        raise ConfigError(f"debug.inject={text}: must be KIND@STEP[:SIZE][:always] with {one_of}")
    kind, step = match["kind"], int(match["step"])
    require(1 <= step <= last_step, "debug.inject", text, f"at a step of the run, 1 to train.steps={last_step}")
    require(
        match["size"] is None or kind in DEFAULT_SIZES, "debug.inject", text, f"without a size: {kind} {KINDS[kind]}"
    )
    fault = Fault(kind, step, float(match["size"] or DEFAULT_SIZES.get(kind, 1.0)), match["always"] is not None)
    whole = kind != "bad_batch" or fault.size.is_integer()
    size = "of a size > 0 that is finite" if kind != "bad_batch" else "of a size that is a whole number of steps, >= 1"
    require(0 < fault.size < inf and whole and fault.steps >= 1, "debug.inject", text, size)
    others = [one for one in KINDS if one != "nan_memory"]
    require(has_memory or kind in others, "debug.inject", text, f"one of {', '.join(others)}: the model has no memory")
    return fault


class FaultInjector:
    """Applies a fault before a training step."""

    def __init__(self, fault: Fault | None) -> None:
        self.fault = fault
        self._hook: RemovableHandle | None = None

    def begins(self, state: TrainState) -> bool:
        """Whether the next step is the first one in which the fault strikes."""
        return self.fault is not None and self._strikes(state) and state.step + 1 == self.fault.step

    def strike(self, state: TrainState, batch: Batch, first_row: int = 0) -> Batch:
        """Apply the fault of the next step: to the state in place, or to the returned batch.

        `first_row`: of these rows in the whole batch.
        """
        state.optimizer.burst = 1.0
        if self._hook is not None:
            self._hook.remove()
        if self.fault is None or not self._strikes(state):
            return batch
        kind, size = self.fault.kind, self.fault.size
        if kind == "lr_burst":
            state.optimizer.burst = size
        elif kind == "bad_batch":
            return _mislabelled(batch, state.step, first_row)
        elif kind in ("gradient", "nan_gradient"):
            factor = size if kind == "gradient" else float("nan")
            self._hook = state.model.norm.register_forward_hook(partial(_scale_gradient, factor))
        elif kind == "nan_loss":
            return replace(batch, weights=batch.weights * float("nan"))
        else:
            _damage(state, kind, size)
        return batch

    def _strikes(self, state: TrainState) -> bool:
        assert self.fault is not None
        first, now = self.fault.step, state.step + 1
        return first <= now < first + self.fault.steps and (self.fault.always or state.segment == 0)


def _mislabelled(batch: Batch, step: int, first_row: int) -> Batch:
    rows, tokens = batch.targets.shape
    generator = torch.Generator().manual_seed(step)
    up_to_these = torch.randint(0, VOCABULARY, (first_row + rows, tokens), generator=generator)  # drawn row by row
    return replace(batch, targets=up_to_these[first_row:])


def _scale_gradient(factor: float, _: nn.Module, __: Any, output: Tensor) -> None:
    """Of what the module has made; a hook on a weight in slices is not called."""
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient * factor)


@torch.no_grad()
def _damage(state: TrainState, kind: str, size: float) -> None:
    slices = state.slices
    parameters: dict[str, Tensor] = slices.whole_weights() if slices else dict(state.model.named_parameters())
    if kind == "weights":
        generator = torch.Generator().manual_seed(state.step)
        for parameter in parameters.values():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(noise * parameter.std() * size)
    else:
        next(p for name, p in parameters.items() if name.endswith("local.0.up")).fill_(float("nan"))
    if slices:
        slices.load(parameters)
