"""`torch.optim.Muon` for a GPU: the matrices of one shape are updated together.

PyTorch's takes one matrix after the other, with 23 operations each: launching them takes longer than the work. The
state is the same, so a checkpoint of one can be continued with the other. Sums are rounded in another order.

Legend: n matrices of one shape [R, C].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MATCH_ADAMW = 0.2  # `adjust_lr_fn="match_rms_adamw"`: an update has the size of AdamW's


class BatchedMuon(torch.optim.Muon):
    """For `adjust_lr_fn="match_rms_adamw"`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters with the gradients they hold; a closure is not used."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for parameters in shapes.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Of parameters of one shape."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = [self._average(parameter) for parameter in parameters]
        momentum, lr = group["momentum"], group["lr"]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, averages, momentum) if group["nesterov"] else averages
        directions = orthogonalised(
            torch.stack(list(updates)), group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        scale = lr * MATCH_ADAMW * max(parameters[0].shape) ** 0.5
        torch._foreach_add_(parameters, directions.to(parameters[0].dtype).unbind(), alpha=-scale)

    def _average(self, parameter: Tensor) -> Tensor:
        """The moving average of its gradients."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average: Tensor = state["momentum_buffer"]
        return average


def orthogonalised(matrices: Tensor, coefficients: Sequence[float], iterations: int, epsilon: float) -> Tensor:
    """[n, R, C] -> [n, R, C] bfloat16, all singular values near 1, by Newton-Schulz (Jordan et al. 2024)."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=epsilon)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
