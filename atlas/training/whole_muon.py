"""`torch.optim.Muon` for matrices in slices: an update is orthogonalised whole, and each rank applies its slice.

PyTorch's own takes slices too, with many more collective operations and other rounding. Here each matrix is gathered
once a step, and its update is bitwise that of a process with whole matrices and the same gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz as orthogonalised

from atlas.parallel.slices import own, slice_of, whole
from atlas.training.batched_muon import MATCH_ADAMW


class WholeMuon(torch.optim.Muon):
    """For `adjust_lr_fn="match_rms_adamw"`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters with the gradients they hold; a closure is not used. A collective operation."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum, lr = self.state[parameter], group["momentum"], group["lr"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        average = state["momentum_buffer"]
        average.lerp_(gradient, 1 - momentum)
        update = whole(gradient.lerp(average, momentum) if group["nesterov"] else average)
        direction = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        scale = lr * (MATCH_ADAMW * max(parameter.shape) ** 0.5)
        slices = own(parameter)
        slices.mul_(1 - lr * group["weight_decay"])
        slices.add_(own(slice_of(direction, parameter)), alpha=-scale)
