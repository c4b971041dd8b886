"""What optimisers of Adam's kind keep of the gradients."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from atlas.training.optimizer import ScheduledOptimizer


def share_with_moments(optimizer: ScheduledOptimizer) -> float:
    """Share of the parameters of which the optimiser keeps a tensor, of more than one element, that is not all 0."""
    kept = [
        any(_has_value(part) for part in one.state.get(parameter, {}).values() if isinstance(part, Tensor))
        for one in optimizer.optimizers
        for group in one.param_groups
        for parameter in group["params"]
        if parameter.numel() > 1
    ]
    return sum(kept) / max(len(kept), 1)


class SecondMoments(NamedTuple):
    """Of optimisers of Adam's kind, without their bias; of slices those of this rank. 0 where there are none."""

    below_epsilon: float  # share of the elements of parameters whose gradients, in root mean square, are smaller
    norm: float  # root of the sum of all: the norm of the gradients that steps are divided by


@torch.no_grad()
def second_moments(optimizer: ScheduledOptimizer) -> SecondMoments:
    squares, limits, sizes = list[Tensor](), list[float](), list[int]()
    for one in optimizer.optimizers:
        for group in one.param_groups:
            for parameter in group["params"]:
                state = one.state.get(parameter, {})
                if not {"exp_avg_sq", "step"} <= state.keys() or not {"eps", "betas"} <= group.keys():
                    continue
                moment = state["exp_avg_sq"]
                own = moment.to_local() if hasattr(moment, "to_local") else moment
                if own.numel():
                    steps = torch.as_tensor(state["step"]).to(own.device)
                    squares.append(own.float().mean() / (1 - group["betas"][1] ** steps))
                    limits.append(group["eps"] ** 2)
                    sizes.append(own.numel())
    if not squares:
        return SecondMoments(0.0, 0.0)
    found = torch.stack(squares).tolist()  # one wait
    small = sum(size for square, limit, size in zip(found, limits, sizes, strict=True) if 0 < square < limit)
    return SecondMoments(small / sum(sizes), sqrt(sum(s * size for s, size in zip(found, sizes, strict=True))))


def _has_value(part: Tensor) -> bool:
    """Of a tensor in slices those of this rank count: the others do not ask. A single number counts steps."""
    if part.numel() == 1:
        return False
    own = part.to_local() if hasattr(part, "to_local") else part
    return bool(own.any())
