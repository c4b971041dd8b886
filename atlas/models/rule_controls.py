"""The gates of a learning rule, from the token (Titans section 3.1: functions of the token, not constants).

Legend: B sequences, T tokens, H heads, N = B * H rows, n controls.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atlas.ops.rules.rule import Control


class RuleControls(nn.Module):
    """maximum * sigmoid(linear(x)) for every memory, head and control; a fixed control is its initial value."""

    def __init__(self, width: int, heads: int, memories: int, controls: tuple[Control, ...]) -> None:
        super().__init__()
        self.heads, self.memories, self.controls = heads, memories, controls
        learnt = [control for control in controls if not control.fixed]
        self.linear: nn.Linear | None = None
        if learnt:  # drawn from no random generator: every rule starts from the same other weights
            share = torch.tensor([control.initial / control.maximum for control in learnt])
            self.linear = nn.utils.skip_init(nn.Linear, width, len(learnt) * memories * heads, device=share.device)
            with torch.no_grad():
                self.linear.weight.zero_()
                self.linear.bias.copy_(torch.logit(share).repeat_interleave(memories * heads))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [memories, N, T, n]."""
        shape = self.memories, x.shape[0] * self.heads, x.shape[1]
        learnt = iter(()) if self.linear is None else iter(self._learnt(x))
        columns = [
            x.new_full(shape, control.initial) if control.fixed else control.maximum * next(learnt)
            for control in self.controls
        ]
        return torch.stack(columns, dim=-1) if columns else x.new_empty(*shape, 0)

    def _learnt(self, x: Tensor) -> Tensor:
        """[learnt controls, memories, N, T] in (0, 1)."""
        assert self.linear is not None
        logits = self.linear(x)
        wide = torch.promote_types(logits.dtype, torch.float32)  # under autocast the gates stay exact
        gates = torch.sigmoid(logits.to(wide)).unflatten(-1, (-1, self.memories, self.heads))
        rows: Tensor = gates.permute(2, 3, 0, 4, 1).flatten(2, 3)
        return rows
