"""Muon: the update of a matrix is its averaged gradient with all singular values near 1 (Jordan et al. 2024).

As `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, whose state it has, with two differences. A weight that
stacks several matrices, such as those of queries, keys and values, gets an update for each of them. And the weights of
one shape are updated together: starting the 23 operations of each takes longer than the work.

Legend: n weights of one shape, each of p matrices [R, C].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

MATCH_ADAMW = 0.2  # an update has the size of AdamW's (Liu et al. 2025)


class Muon(torch.optim.Muon):
    def __init__(self, parts: Mapping[nn.Parameter, int], *, lr: float, weight_decay: float) -> None:
        """`parts`: p of each weight [p R, C]. No state holds it."""
        super().__init__(list(parts), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.parts = dict(parts)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters with the gradients they hold; a closure is not used."""
        for group in self.param_groups:
            together: dict[Any, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    together[parameter.shape, self.parts[parameter]].append(parameter)
            for parameters in together.values():
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Of parameters of one shape."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = [self._average(parameter) for parameter in parameters]
        momentum, lr = group["momentum"], group["lr"]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, averages, momentum) if group["nesterov"] else averages
        parts = self.parts[parameters[0]]
        directions = directions_of(torch.stack(list(updates)), parts, group)
        torch._foreach_mul_(list[Tensor](parameters), 1 - lr * group["weight_decay"])
        scale = lr * update_scale(parameters[0], parts)
        torch._foreach_add_(list[Tensor](parameters), directions.to(parameters[0].dtype).unbind(), alpha=-scale)

    def _average(self, parameter: Tensor) -> Tensor:
        """The moving average of its gradients."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        average: Tensor = state["momentum_buffer"]
        return average


def update_scale(weight: Tensor, parts: int) -> float:
    """Scales a direction to the RMS of an AdamW update: that of a direction [R, C] is 1 / sqrt(max(R, C))."""
    rows, columns = weight.shape
    return MATCH_ADAMW * sqrt(max(rows // parts, columns))


def directions_of(updates: Tensor, parts: int, group: Mapping[str, Any]) -> Tensor:
    """[n, p R, C] -> [n, p R, C] bfloat16: each [R, C] orthogonalised by itself, with the settings of `group`."""
    matrices = updates.unflatten(1, (parts, -1)).flatten(0, 1)
    directions = orthogonalised(matrices, group["ns_coefficients"], group["ns_steps"], group["eps"])
    return directions.view(updates.shape)


def orthogonalised(matrices: Tensor, coefficients: Sequence[float], iterations: int, epsilon: float) -> Tensor:
    """[n, R, C] -> [n, R, C] bfloat16, all singular values near 1, by Newton-Schulz as in `torch.optim.Muon`.

    The memory has a form of its own, with a gradient (`ops/newton_schulz`).
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=epsilon)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).contiguous()
