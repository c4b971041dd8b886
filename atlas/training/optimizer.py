"""Optimisers with their learning-rate schedule: the functions that `conf/optim` names.

The schedule is a pure function of the step, so a checkpoint needs no state for it. `schedule` and `decay` have defaults
in the code as well: the settings of older runs lack them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi
from typing import Annotated, Any, Literal

import torch
from torch import nn

from atlas.config.values import Allowed, Share, within
from atlas.models.stacked_linear import StackedLinear
from atlas.training.muon import Muon

Positive = Annotated[float, within("(0, inf)")]
Schedule = Literal["cosine", "linear", "constant", "wsd"]
Steps = Annotated[int, within("[0, inf)")]
Betas = Annotated[
    Sequence[float], Allowed("of two numbers in [0, 1)", lambda b: len(b) == 2 and all(0 <= beta < 1 for beta in b))
]


def adamw(
    *,
    model: nn.Module,
    steps: int,
    lr: Positive,
    weight_decay: Annotated[float, within("[0, inf)")],
    betas: Betas,
    warmup: Steps,
    lr_min_ratio: Share,
    schedule: Schedule = "cosine",
    decay: Share = 0.2,
) -> ScheduledOptimizer:
    """AdamW; weight decay on matrices of linear layers only."""
    matrices, rest = parameter_groups(model)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=_on_gpu(model) or None)
    return ScheduledOptimizer([optimizer], lr, steps, warmup, lr_min_ratio, schedule, decay)


def muon(
    *,
    model: nn.Module,
    steps: int,
    lr: Positive,
    weight_decay: Annotated[float, within("[0, inf)")],
    betas: Betas,
    warmup: Steps,
    lr_min_ratio: Share,
    schedule: Schedule = "cosine",
    decay: Share = 0.2,
) -> ScheduledOptimizer:
    """Muon on the matrices of linear layers, its updates scaled to AdamW's; AdamW on the rest.

    `betas` are AdamW's; Muon has Nesterov momentum of 0.95. Weight decay is of the matrices only.
    """
    matrices, rest = parameter_groups(model)
    stacked = {layer.weight: layer.parts for layer in model.modules() if isinstance(layer, StackedLinear)}
    parts = {matrix: stacked.get(matrix, 1) for matrix in matrices}
    optimizers = [
        _muon_of(model)(parts, lr=lr, weight_decay=weight_decay),
        torch.optim.AdamW(rest, lr=lr, betas=(betas[0], betas[1]), weight_decay=0.0, fused=_on_gpu(model) or None),
    ]
    return ScheduledOptimizer(optimizers, lr, steps, warmup, lr_min_ratio, schedule, decay)


def _muon_of(model: nn.Module) -> type[Muon]:
    if any(hasattr(parameter, "to_local") for parameter in model.parameters()):
        from atlas.training.sliced_muon import SlicedMuon  # imported late: what it needs takes a second

        return SlicedMuon
    return Muon


def _on_gpu(model: nn.Module) -> bool:
    return all(parameter.is_cuda for parameter in model.parameters())


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices of linear layers, and everything else: embedding, norms, biases, W_init, persistent memory."""
    linear = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}
    matrices = [parameter for parameter in model.parameters() if id(parameter) in linear]
    return matrices, [parameter for parameter in model.parameters() if id(parameter) not in linear]


class ScheduledOptimizer:
    """One or more optimisers under one schedule: linear warm-up to `lr`, then what `schedule` names.

    cosine    down to `lr_min_ratio * lr` at the last step
    linear    the same in a straight line
    constant  `lr` to the end
    wsd       warm-up, stable, decay: `lr`, then over the last `decay` of the steps a straight line as in linear

    It is that of the groups with the highest lr. Groups that were made with a lower one keep their ratio to it.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        lr: float,
        steps: int,
        warmup: int,
        lr_min_ratio: float,
        schedule: Schedule = "cosine",
        decay: float = 0.2,
    ) -> None:
        self.optimizers = list(optimizers)
        self.lr, self.steps, self.lr_min_ratio = lr, steps, lr_min_ratio
        self.schedule, self.decay = schedule, decay
        self.warmup = min(warmup, steps)
        own = [[float(group.get("lr", lr)) for group in one.param_groups] for one in self.optimizers]
        highest = max((rate for rates in own for rate in rates), default=lr)
        self.ratios = [[rate / highest if highest else 1.0 for rate in rates] for rates in own]
        self.scale = 1.0  # lowered by a rollback that answers with `lower_lr`
        self.burst = 1.0  # raised for a few steps by an injected fault

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, 1 <= step <= steps."""
        if step <= self.warmup:
            return self.burst * self.scale * self.lr * step / self.warmup
        start = self.warmup if self.schedule != "wsd" else max(self.warmup, round(self.steps * (1 - self.decay)))
        progress = max(step - start, 0) / max(self.steps - start, 1)
        floor = self.lr_min_ratio
        match self.schedule:
            case "cosine":
                height = (1 + cos(pi * progress)) / 2
            case "linear" | "wsd":
                height = 1 - progress
            case "constant":
                height = 1.0
        return self.burst * self.scale * self.lr * (floor + (1 - floor) * height)

    def step(self, step: int) -> float:
        """Update the parameters with the gradients they hold; returns the learning rate used."""
        lr = self.lr_at(step)
        for optimizer, ratios in zip(self.optimizers, self.ratios, strict=True):
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] = lr * ratio
            optimizer.step()
        return lr

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over moments and scale. Weight decay, betas and the like stay those of the configuration."""
        self.scale = state["scale"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            kept = ("params", "lr")  # the schedule sets lr at the next step; until then it is that of the last one
            own = [{key: value for key, value in group.items() if key not in kept} for group in optimizer.param_groups]
            groups = [group | settings for group, settings in zip(saved["param_groups"], own, strict=True)]
            optimizer.load_state_dict({**saved, "param_groups": groups})
