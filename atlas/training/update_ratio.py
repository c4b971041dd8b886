"""How far a step moves the weights, relative to their size: far below 1e-3 a part hardly learns, far above it is torn.

Read at logged steps only, from a copy of the weights before the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor, nn

from atlas.parallel.ranks import ALONE, Ranks


def copied(model: nn.Module, ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """Copies of the parameters, of the rank's slices where it has slices."""
    return {name: ranks.own(parameter.detach()).clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def update_ratios(before: Mapping[str, Tensor], model: nn.Module, ranks: Ranks = ALONE) -> dict[str, float | None]:
    """`update_ratio/<part>`: ||W - W before|| / ||W before|| over all parameters of a part of the blocks (attention,
    memory, feedforward, ...) or of the model (embedding); None where all of them were 0. {} without a copy.

    By rank 0 alone, or by all ranks if they have slices."""
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters() if before else ():
        old = before[name]
        pair = torch.stack(((ranks.own(parameter) - old).float().square().sum(), old.float().square().sum()))
        squares.setdefault(part_of(name), []).append(pair)
    if not squares:
        return {}
    sums = ranks.sum_of_slices(torch.stack([torch.stack(pairs).sum(0) for pairs in squares.values()]))
    ratios = (sums[:, 0] / sums[:, 1]).sqrt().tolist()  # one device synchronisation
    return {
        f"update_ratio/{part}": ratio if isfinite(ratio) else None for part, ratio in zip(squares, ratios, strict=True)
    }


def part_of(name: str) -> str:
    """`blocks.0.attention.qkv.weight` -> attention, `embedding.weight` -> embedding."""
    first, *rest = name.split(".")
    return rest[1] if first == "blocks" and len(rest) > 1 else first
