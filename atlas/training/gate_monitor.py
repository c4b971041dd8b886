"""Statistics of the gates, and the monitor of gates that no longer vary.

Legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from atlas.config import GateAction, GateConfig
from atlas.parallel.ranks import Ranks

SAMPLE = 2**17  # gates in the statistics: the error of their mean is below 0.002, at no measurable cost
GOLDEN = 2654435769  # the golden ratio, 0.618 * 2**32


class GateStatistics(NamedTuple):
    mean: float
    std: float
    polarised: float  # share of gates below 0.1 or above 0.9

    @property
    def variance(self) -> float:
        return self.std**2


@torch.no_grad()
def gate_numbers(gates: Sequence[Tensor]) -> Tensor:
    """The numbers of `GateStatistics`, left on the device: [3].

    Over the gates [B, T, D] of all layers, in a large batch over one of every n.
    """
    stride = max(1, sum(gate.numel() for gate in gates) // SAMPLE)
    places = {size: _places(size, stride, gates[0].device) for size in {gate.numel() for gate in gates}}
    values = torch.cat([gate.detach().flatten()[places[gate.numel()]].float() for gate in gates])
    polarised = ((values - 0.5).abs() > 0.4).float().mean()
    return torch.stack((values.mean(), values.std(), polarised))


def _places(size: int, stride: int, device: torch.device) -> Tensor | slice:
    """One place in every `stride` of `size`, at steps of the golden ratio within it: rows, tokens and features are all
    seen, and no length of a row, chunk or shard is in step with them."""
    if stride == 1:
        return slice(None)
    stretch = torch.arange(size // stride, device=device)
    return stretch * stride + (stretch * GOLDEN % 2**32 * stride >> 32)


def over_ranks(own: GateStatistics | None, tokens: int, ranks: Ranks) -> GateStatistics | None:
    """The statistics over the gates of all ranks. `tokens`: of this one; where a row is a document they have as many as
    their rows are long."""
    if own is None or ranks.world == 1:
        return own
    of_ranks = ranks.gather_rows(torch.tensor([[*own, tokens]], dtype=torch.float64))
    means, stds, polarised = of_ranks[:, :3].T
    shares = of_ranks[:, 3] / of_ranks[:, 3].sum()
    mean = (shares * means).sum()
    variance = (shares * (stds.square() + (means - mean).square())).sum()
    return GateStatistics(mean.item(), variance.sqrt().item(), (shares * polarised).sum().item())


class GateMonitor:
    """Two rules: at step `monitor_check` the variance of the gates is at least `variance_ratio_min` times that at step
    `monitor_start`; from `monitor_start` on their std is at least `std_min`.

    Gates with a std of `nontrivial_std` or more pass the first rule: the variance of a gate is at most 1/4, and
    polarisation brings it near that before `monitor_start`, so it cannot grow further.

    `check` returns a complaint with its numbers at the step where a rule is first broken, else None.
    `GateConfig.monitor` says what follows.
    """

    def __init__(self, settings: GateConfig) -> None:
        self.settings = settings
        self.start_variance: float | None = None
        self.complaining = False

    def check(self, step: int, gates: GateStatistics | None) -> str | None:
        settings = self.settings
        if gates is None or settings.monitor is GateAction.off or step < settings.monitor_start:
            return None
        if step == settings.monitor_start:
            self.start_variance = gates.variance
        before, self.complaining = self.complaining, gates.std < settings.std_min
        if self.complaining:
            if before:
                return None
            return f"gate std {gates.std:.4g} at step {step} is below train.gate.std_min={settings.std_min}"
        if step == settings.monitor_check and self.start_variance is not None:
            return self._growth(gates, self.start_variance)
        return None

    def _growth(self, gates: GateStatistics, start: float) -> str | None:
        settings = self.settings
        if gates.std >= settings.nontrivial_std or gates.variance >= settings.variance_ratio_min * start:
            return None
        return (
            f"gate variance {gates.variance:.4g} at step {settings.monitor_check} (std {gates.std:.4g}) is below "
            f"train.gate.variance_ratio_min={settings.variance_ratio_min} times {start:.4g} "
            f"at step {settings.monitor_start}"
        )

    def state_dict(self) -> dict[str, float | bool | None]:
        return {"start_variance": self.start_variance, "complaining": self.complaining}

    def load_state_dict(self, state: dict[str, float | bool | None]) -> None:
        self.start_variance, self.complaining = state["start_variance"], bool(state["complaining"])
