"""Watchers of what the model computes: sound models, and models that see what they should not."""

from __future__ import annotations

from typing import Any

import torch

from atlas.config import ChunkSizeConfig, MemoryConfig, ModelConfig
from atlas.models.language_model import AtlasModel
from atlas.training.watchers import JUDGES
from atlas.training.watchers.measuring import find_leaks
from atlas.training.watchers.record import Facts, Leaks, Record
from experiments.silent.wrong_model import memories_of_other_rows
from experiments.silent.wrong_optim import looking_ahead

SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "warmup": 0, "lr_min_ratio": 0.1}
VOCABULARY = 17


def told(found: Leaks | None) -> str | None:
    finding = JUDGES["leaks"](Record(Facts(steps=100), leaks=found))
    return None if finding is None else finding.seen


def test_what_is_told() -> None:
    assert told(None) is None
    assert told(Leaks(0.0, 0.001)) is None
    assert told(Leaks(0.5, 0.5)) == "other rows of the batch change the outputs of a row by 50%"
    assert told(Leaks(0.0, 0.5)) == "tokens change the outputs before them by 50%"


def a_model() -> AtlasModel:
    torch.manual_seed(0)
    memory = MemoryConfig(hidden=8, rate_init=0.5)
    config = ModelConfig(width=16, layers=1, heads=2, window=5, feedforward=12, persistent_keys=6, memory=memory)
    model = AtlasModel(config, ChunkSizeConfig([4], 8, 16), VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():  # no part of a model that has learned is 0
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def test_a_sound_model_computes_the_same_bits() -> None:
    assert find_leaks(a_model(), torch.arange(32)[None] % VOCABULARY) == Leaks(0.0, 0.0)
    assert find_leaks(a_model(), torch.zeros(1, 1, dtype=torch.int64)) == Leaks(0.0, 0.0)


@torch.no_grad()
def test_rows_and_tokens_that_a_model_should_not_see() -> None:
    seen = torch.arange(32)[None] % VOCABULARY
    for mistake, rows in ((memories_of_other_rows, True), (looking_ahead, False)):
        model = a_model()
        mistake(model=model, steps=1, **SETTINGS)
        found = find_leaks(model, seen)
        assert found.future > 0.1  # a row that sees others sees their later tokens too
        assert (found.rows > 0.1, found.rows == 0.0) == (rows, not rows)
