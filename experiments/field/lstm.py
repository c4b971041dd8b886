"""An LSTM of PyTorch in the place of attention: the recurrent baseline.

Legend: B sequences, T tokens, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atlas.models.attention import AttentionState
from atlas.models.block import AtlasMAGBlock
from atlas.models.language_model import AtlasModel
from atlas.models.persistent import PersistentMemory
from atlas.ops.rotary import Rotary


class LSTMMixer(nn.Module):
    """Mixes the tokens of whole sequences; it keeps no state from one call to the next."""

    window = 0  # sees all tokens before

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def initial_state(self, batch: int) -> AttentionState:
        empty = torch.zeros(batch, 1, 0, 1)
        return AttentionState(empty, empty, torch.zeros(batch, 0, dtype=torch.bool))

    def forward(
        self, x: Tensor, state: AttentionState, rotary: Rotary, persistent: PersistentMemory | None
    ) -> tuple[Tensor, AttentionState]:
        """x [B, T, D] -> [B, T, D], and the state as it was."""
        if rotary.first:
            raise ValueError("the LSTM reads a sequence in one call")
        out, _ = self.lstm(x)
        return out, state


def with_lstm(model: AtlasModel, seed: int) -> AtlasModel:
    """The model with an LSTM in every block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in model.blocks:
            assert isinstance(block, AtlasMAGBlock)
            block.attention = LSTMMixer(model.embedding.embedding_dim)  # type: ignore[assignment]
    return model
