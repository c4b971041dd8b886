"""Watchers of what the model computes: sound models, and models that see what they should not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atlas.config import ChunkSizeConfig, MemoryConfig, ModelConfig
from atlas.models.language_model import AtlasModel
from atlas.training.evaluating import evaluating
from atlas.training.watchers import JUDGES
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.model_facts import model_facts
from atlas.training.watchers.observations import ModelFacts, Restored
from atlas.training.watchers.record import Record
from experiments.silent.wrong_model import memories_of_other_rows
from experiments.silent.wrong_optim import looking_ahead

SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "warmup": 0, "lr_min_ratio": 0.1}
VOCABULARY = 17


def told(found: ModelFacts | None, watcher: str = "leaks") -> str | None:
    finding = JUDGES[watcher](Record(Facts(steps=100), model_facts=found))
    return None if finding is None else finding.seen


def test_what_is_told() -> None:
    for name in ("leaks", "noise", "parts", "slopes"):
        assert told(None, name) is None
        assert told(ModelFacts(0.0, 0.001, 0.001, False, 0.02, {"memory": 0.95, "gate": 1.05}), name) is None
    assert told(ModelFacts(0.5, 0.5)) == "other rows of the batch change the outputs of a row by 50%"
    assert told(ModelFacts(0.0, 0.5)) == "tokens change the outputs before them by 50%"
    assert (told(ModelFacts(0.0, 0.0, noise=0.2), "noise") or "").startswith(
        "the same text gives outputs that differ by 20%"
    )
    assert (told(ModelFacts(0.0, 0.0, parts=0.2), "parts") or "").endswith("differ by 20% from those of one reading")
    seen = told(ModelFacts(0.0, 0.0, slopes={"memory": 0.5, "gate": 1.3}), "slopes")
    assert seen == "the loss changes along the gradient of memory 0.50 times as much as the gradient says"


def a_model() -> AtlasModel:
    torch.manual_seed(0)
    memory = MemoryConfig(hidden=8, rate_init=0.5)
    config = ModelConfig(width=16, layers=1, heads=2, window=5, feedforward=12, persistent_keys=6, memory=memory)
    model = AtlasModel(config, ChunkSizeConfig([4], 8, 16), VOCABULARY)
    with torch.no_grad():
        for parameter in model.parameters():  # no part of a model that has learned is 0
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def facts_of(model: AtlasModel, tokens: int) -> ModelFacts:
    row = torch.arange(tokens)[None] % VOCABULARY
    with evaluating(model):
        return model_facts(model, row, (row * 3 + 1) % VOCABULARY)


def test_a_sound_model_passes_and_keeps_its_weights() -> None:
    model = a_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = facts_of(model, 32)
    assert (found.rows, found.future, found.noise) == (0.0, 0.0, 0.0)
    assert found.parts < 1e-4
    assert {"attention", "memory", "gate", "feedforward", "embedding"} <= found.slopes.keys()
    assert max(abs(slope - 1) for slope in found.slopes.values()) < 0.02
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert facts_of(a_model(), 1).parts == 0.0


def test_rows_and_tokens_that_a_model_should_not_see() -> None:
    for mistake, rows in ((memories_of_other_rows, True), (looking_ahead, False)):
        model = a_model()
        mistake(model=model, steps=1, **SETTINGS)
        found = facts_of(model, 32)
        assert found.future > 0.1  # a row that sees others sees their later tokens too
        assert (found.rows > 0.1, found.rows == 0.0) == (rows, not rows)


class Mistaken(nn.Module):
    """In the place of a block's `out`, what it gives changed by `how`."""

    def __init__(self, inner: nn.Module, how: Callable[[Mistaken, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.how, self.calls = inner, how, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.how(self, self.inner(x))


def with_mistake(how: Callable[[Mistaken, Tensor], Tensor]) -> ModelFacts:
    model = a_model()
    model.blocks[0].out = Mistaken(model.blocks[0].out, how)  # type: ignore[assignment]
    return facts_of(model, 32)


def test_outputs_that_depend_on_the_mode_or_the_call() -> None:
    assert with_mistake(lambda one, x: x * (1 + one.calls)).noise > 0.1
    by_mode = with_mistake(lambda one, x: x if one.training else 2 * x)
    assert (by_mode.noise, by_mode.modes) == (0.0, True)
    torch.manual_seed(0)
    dropout = with_mistake(lambda one, x: nn.functional.dropout(x, 0.5, one.training))
    assert (dropout.noise, dropout.modes) == (0.0, True)
    assert with_mistake(lambda _, x: nn.functional.dropout(x, 0.5)).noise > 0.1


def test_running_statistics_are_as_before() -> None:
    model = a_model()
    statistics = nn.BatchNorm1d(16)
    model.blocks[0].out = Mistaken(model.blocks[0].out, lambda _, x: statistics(x.mT).mT)  # type: ignore[assignment]
    model.blocks[0].out.add_module("statistics", statistics)  # type: ignore[operator]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert len(before) == 3
    assert facts_of(model, 32).modes
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_loss_that_is_higher_in_evaluation() -> None:
    def seen(step: int, gap: float) -> str | None:
        found = JUDGES["modes"](Record(Facts(steps=100), mode_gap=(step, gap)))
        return None if found is None else found.seen

    assert seen(50, 0.5) == "the loss of the watched rows is 0.50 nats higher in evaluation than in training mode"
    assert (seen(40, 0.5), seen(50, 0.2), seen(50, -2.0)) == (None, None, None)


def test_what_a_resumed_run_has_restored() -> None:
    def seen(*found: Any) -> str | None:
        finding = JUDGES["restored"](Record(Facts(steps=100), restored=Restored(*found)))
        return None if finding is None else finding.seen

    assert seen(False, 2.0, 2.0) == "the validation rows are not those of the start before"
    assert (seen(True, 2.0, 2.1) or "").startswith(
        "with the restored weights the watched rows have a loss of 2.100 nats, and had one of 2.000 when they"
    )
    assert (seen(True, 2.0, 2.01), seen(True, None, 2.1)) == (None, None)


def test_gradients_that_are_not_the_slope() -> None:
    def detached(_: Mistaken, x: Tensor) -> Tensor:
        return x.detach() * 0.5 + x * 0.5

    slopes = with_mistake(detached).slopes
    assert slopes["memory"] > 1.2
    assert slopes["feedforward"] == pytest.approx(1, abs=0.05)  # comes after


def test_a_state_that_is_not_the_one_of_one_reading() -> None:
    assert with_mistake(lambda _, x: x * torch.arange(1, x.shape[1] + 1)[:, None]).parts > 0.1  # counts from the call


def test_a_token_that_is_read_alone() -> None:
    assert with_mistake(lambda _, x: x * (2 if x.shape[1] == 1 else 1)).parts > 0.1
