"""The cost of a reset of the local memories: the loss after the first reset, compared with no reset.

Legend: B sequences, S_L shard, n horizon.

    shock = (loss with the reset - loss without) / loss without,     over tokens S_L .. S_L + n - 1 of the same text

Both passes are the same up to token S_L, so the reset alone makes the difference. A reset also sets the sums of the Q-K
projection to the persistent ones. Below 0 the reset helps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.models.language_model import AtlasModel
from atlas.models.plan import ChunkPlan


@dataclass(frozen=True)
class ResetShock:
    """Losses in nats per token, over the tokens after the reset."""

    with_reset: float
    without: float
    horizon: int  # tokens

    @property
    def relative(self) -> float:
        return self.with_reset / self.without - 1

    def describe(self) -> str:
        return (
            f"a reset of the local memories changes the loss of the next {self.horizon} tokens by {self.relative:+.2%}"
        )


def reset_shock(model: AtlasModel, rows: Tensor, horizon: int) -> ResetShock:
    """Measure on tokens [B, S_L + n + 1]; the model's plan has a shard of S_L. No gradients are kept."""
    plan = model.plan
    with_reset = _loss_after(model, rows, plan, horizon)
    return ResetShock(with_reset, _loss_after(model, rows, plan._replace(shard=None), horizon), horizon)


@torch.no_grad()
def _loss_after(model: AtlasModel, rows: Tensor, plan: ChunkPlan, horizon: int) -> float:
    """Mean loss of the last `horizon` targets."""
    losses = []
    for part in rows.split(max(1, model.tokens_at_once // rows.shape[1])):
        logits = model(part[:, :-1], plan=plan).logits[:, -horizon:]  # [B, n, vocabulary]
        losses.append(F.cross_entropy(logits.float().flatten(0, 1), part[:, -horizon:].flatten(), reduction="none"))
    return torch.cat(losses).double().mean().item()
