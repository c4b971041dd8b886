"""Whether the model is, when a step begins, what the step before has left: no measurement between them may change it.

Weights, persistent buffers and the modes of all modules. A change of any bit shows; the sums are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from atlas.training.watchers.finding import Finding
from atlas.training.watchers.record import Record

SHOWN = 3  # names
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


class Left(NamedTuple):
    """What a step has left."""

    place: tuple[int, int]  # segment and step
    sums: dict[str, int]  # of the bits of each weight and buffer; of slices those of this rank
    modes: dict[str, bool]  # of each module: whether it trains
    learning: dict[str, bool]  # of each parameter: whether it has a gradient


@torch.no_grad()
def left(place: tuple[int, int], model: nn.Module) -> Left:
    tensors = {name: _own(part.detach()) for name, part in model.state_dict().items() if isinstance(part, Tensor)}
    bits = [tensor.view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors.values()]
    sums = torch.stack(bits).tolist() if bits else []  # one wait
    modes = {name: module.training for name, module in model.named_modules()}
    learning = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return Left(place, dict(zip(tensors, sums, strict=True)), modes, learning)


def _own(tensor: Tensor) -> Tensor:
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return torch.view_as_real(own) if own.is_complex() else own


def changed(before: Left, now: Left) -> list[str]:
    """What is no longer as it was: weights and buffers by name, then modes. [] after a rollback in between."""
    if before.place != now.place:
        return []
    found = [name for name, total in before.sums.items() if now.sums.get(name) != total]
    modes = [name for name, trains in before.modes.items() if now.modes.get(name, trains) != trains]
    found += [f"the mode of {name or 'the model'}" for name in modes[:1]]  # its parts have the same
    return found + [f"requires_grad of {n}" for n, has in before.learning.items() if now.learning.get(n, has) != has]


def side_effects(record: Record) -> Finding | None:
    """In a sound run nothing but the optimiser's step, a rollback or a calibration changes weights."""
    if record.side_effects is None:
        return None
    step, names = record.side_effects
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return Finding(
        "side_effects",
        record.step,
        len(names),
        f"after step {step}, and before the next one, {', '.join(names[:SHOWN])}{more} changed",
        "a validation, a metric or a checkpoint changes the model that it is to measure, and training goes on with it",
        "to look at metrics, modules and loggers of yours that write into weights, call eval() or freeze parameters",
    )
