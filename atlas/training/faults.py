"""Fault injection: rehearse what the run does when something goes wrong (`debug.inject=KIND@STEP[:SIZE][:always]`).

A fault strikes once; with `always` it strikes again whenever its step comes again after a rollback.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch.utils.hooks import RemovableHandle

from atlas.config import ConfigError
from atlas.data.batch import Batch
from atlas.training.state import TrainState

KINDS = {
    "bad_batch": "bytes of the batch are replaced by random ones for SIZE steps (default 20)",
    "lr_burst": "the learning rate is SIZE times as high for 5 steps (default 100)",
    "weights": "noise of SIZE times their own standard deviation is added to the weights (default 1)",
    "nan_loss": "the batch's loss weights become NaN",
    "nan_gradient": "the gradient of one parameter becomes NaN",
    "nan_memory": "a W_init of the memory becomes NaN",
}
DEFAULT_SIZES = {"bad_batch": 20.0, "lr_burst": 100.0, "weights": 1.0}
BURST_STEPS = 5
_SPEC = re.compile(r"(?P<kind>\w+)@(?P<step>\d+)(:(?P<size>[0-9.]+))?(?P<always>:always)?")


@dataclass(frozen=True)
class Fault:
    kind: str
    step: int
    size: float
    always: bool


def parse_fault(text: str) -> Fault:
    """Parse `KIND@STEP[:SIZE][:always]`. Raises `ConfigError`."""
    match = _SPEC.fullmatch(text)
    if match is None or match["kind"] not in KINDS:
        raise ConfigError(f"debug.inject={text}: must be KIND@STEP[:SIZE][:always] with KIND one of {', '.join(KINDS)}")
    size = float(match["size"]) if match["size"] else DEFAULT_SIZES.get(match["kind"], 1.0)
    return Fault(match["kind"], int(match["step"]), size, match["always"] is not None)


class FaultInjector:
    """Strikes just before a training step."""

    def __init__(self, fault: Fault | None) -> None:
        self.fault = fault
        self.segment: int | None = None  # in which the fault struck first
        self._hook: RemovableHandle | None = None

    def strike(self, state: TrainState, batch: Batch) -> Batch:
        """Do the step's damage to the state in place; returns the batch, damaged or not."""
        step = state.step + 1
        state.optimizer.burst = 1.0
        if self._hook is not None:
            self._hook.remove()
        if self.fault is None or not self._hits(step, state.segment):
            return batch
        kind, size = self.fault.kind, self.fault.size
        if kind == "lr_burst":
            state.optimizer.burst = size
        elif kind == "bad_batch":
            return _scrambled(batch, step)
        elif kind == "nan_gradient":
            self._hook = state.model.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
        elif kind == "nan_loss":
            return replace(batch, weights=batch.weights * float("nan"))
        else:
            _damage(state, kind, size)
        return batch

    def _hits(self, step: int, segment: int) -> bool:
        assert self.fault is not None
        lasts = {"bad_batch": int(self.fault.size), "lr_burst": BURST_STEPS}.get(self.fault.kind, 1)
        if not self.fault.step <= step < self.fault.step + lasts:
            return False
        if self.segment is None:
            self.segment = segment
        return self.fault.always or segment == self.segment


def _scrambled(batch: Batch, step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    noise = torch.randint(0, 256, batch.inputs.shape, generator=generator)
    return replace(batch, inputs=noise, targets=noise.roll(-1, dims=1))


@torch.no_grad()
def _damage(state: TrainState, kind: str, size: float) -> None:
    parameters = dict(state.model.named_parameters())
    if kind == "weights":
        generator = torch.Generator().manual_seed(state.step)
        for parameter in parameters.values():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.add_(noise * parameter.std() * size)
    else:
        next(p for name, p in parameters.items() if name.endswith("local.0.up")).fill_(float("nan"))
