"""Time and memory per decoded token, after a short and after a long context.

The state's bytes are those of the storages that it keeps alive: a view of a large tensor counts as the large tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import atlas
from atlas.config import VOCABULARY
from atlas.models.decoding import prefilled
from atlas.models.language_model import AtlasModel, ModelState
from atlas.models.plan import MemoryMode
from experiments.speed.contestants import configuration
from experiments.speed.entries import Entry
from experiments.speed.race import race

BLOCK_TOKENS = 64  # decoded between two readings of the clock: whole chunks of every size
BLOCKS_PER_ROUND = 2


class Decoder:
    """Callable: decodes one block of one sequence from where the last call ended."""

    def __init__(self, model: AtlasModel, context: int, device: torch.device) -> None:
        self.model, self.context, self.device = model, context, device
        self.state = self._prefill()
        self.prefilled_bytes = kept_bytes(self.state)

    @torch.no_grad()
    def _prefill(self) -> ModelState:
        prompt = torch.randint(0, VOCABULARY, (1, self.context), generator=torch.Generator().manual_seed(0))
        return prefilled(self.model, prompt.to(self.device), self.model.plan, MemoryMode.learn)

    @torch.no_grad()
    def __call__(self) -> None:
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        for _ in range(BLOCK_TOKENS):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                out = self.model(token, self.state)
            self.state, token = out.state, out.logits[:, -1:].argmax(-1)


def decode_rows(contestants: Sequence[Entry], rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """A row per contestant and context; `seconds` are per token."""
    decoders: dict[str, Decoder] = {}
    rows = []
    for name, shape in contestants:
        print(f"  {name}: decoding after {shape.sequence} tokens", flush=True)
        model = atlas.build_model(configuration(name, shape)).to(device).eval()
        decoders[f"{name} {shape.sequence}"] = decoder = Decoder(model, shape.sequence, device)
        decoder()
        rows.append({"name": name, "context": shape.sequence, "prefilled_bytes": decoder.prefilled_bytes})
    seconds = race(decoders, rounds * BLOCKS_PER_ROUND, device)
    for row in rows:
        key = f"{row['name']} {row['context']}"
        row["seconds"] = [taken / BLOCK_TOKENS for taken in seconds[key]]
        row["state_bytes"] = kept_bytes(decoders[key].state)
    return rows


def kept_bytes(state: ModelState) -> int:
    """Memory that the state keeps from being freed."""
    leaves = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
    return sum({leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}.values())
