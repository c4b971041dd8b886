"""Muon for weights in slices: an update is orthogonalised whole, and each rank applies its slice.

PyTorch's own takes slices too, with many more collective operations and other rounding. Here each weight is gathered
once a step, and its update is that of a process with whole weights and the same gradients, up to bfloat16's rounding.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from atlas.parallel.slices import own, slice_of, whole
from atlas.training.muon import Muon, directions_of, update_scale


class SlicedMuon(Muon):
    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """A collective operation."""
        for parameter in parameters:
            gradient, average = parameter.grad, self._average(parameter)
            assert gradient is not None
            average.lerp_(gradient, 1 - group["momentum"])
            update = whole(gradient.lerp(average, group["momentum"]) if group["nesterov"] else average)
            parts = self.parts[parameter]
            (direction,) = directions_of(update[None], parts, group)
            slices = own(parameter)
            slices.mul_(1 - group["lr"] * group["weight_decay"])
            slices.add_(own(slice_of(direction, parameter)), alpha=-group["lr"] * update_scale(parameter, parts))
