"""Losses beyond the trained length: streamed and alone, and what stays finite at extreme rates."""

from __future__ import annotations

from math import exp, inf, nan

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import ChunkSizeConfig, MemoryConfig, ModelConfig, OmegaRuleConfig, Rule
from atlas.models.language_model import AtlasModel
from atlas.models.plan import MemoryMode
from atlas.probes.lengths import Stretch, by_length, loss_by_stretch

TRAINED = 16


def make(memory: MemoryConfig) -> AtlasModel:
    torch.manual_seed(0)
    config = ModelConfig(width=16, layers=1, heads=2, window=5, feedforward=12, persistent_keys=6, memory=memory)
    return AtlasModel(config, ChunkSizeConfig([4], 8, 8), 17)


def mean_loss(logits: Tensor, targets: Tensor) -> float:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()


@pytest.mark.parametrize("mode", list(MemoryMode))
def test_stretches_are_parts_of_one_pass_and_passes_of_their_own(mode: MemoryMode) -> None:
    model = make(MemoryConfig(hidden=8, rate_init=0.5)).train()
    rows = torch.randint(0, 17, (3, 3 * TRAINED + 1))
    plan = model.plan._replace(shard=None)
    found = loss_by_stretch(model, rows, TRAINED, plan=plan, mode=mode)
    whole = model(rows[:, :-1], plan=plan, mode=mode).logits
    for index, stretch in enumerate(found):
        part = slice(index * TRAINED, (index + 1) * TRAINED)
        targets = rows[:, 1:][:, part]
        alone = model(rows[:, :-1][:, part], plan=plan, mode=mode).logits
        expected = Stretch(index + 1, mean_loss(whole[:, part], targets), mean_loss(alone, targets))
        assert stretch.factor == expected.factor
        assert (stretch.streamed, stretch.alone) == pytest.approx((expected.streamed, expected.alone), rel=1e-5)
    assert len(found) == 3
    assert model.training


def test_perplexities_up_to_a_length() -> None:
    stretches = [Stretch(1, 1.0, 1.0), Stretch(2, 2.0, 1.5), Stretch(3, nan, 1.0), Stretch(4, 1e6, 1.0)]
    lengths = by_length(stretches, (1, 2, 3, 4))
    assert [one.factor for one in lengths] == [1, 2, 3, 4]
    assert [one.perplexity for one in lengths] == pytest.approx([exp(1), exp(1.5), inf, inf])
    assert [one.in_pieces for one in lengths[:2]] == pytest.approx([exp(1), exp(1.25)])
    assert [one.change for one in lengths] == pytest.approx([0, exp(0.25) - 1, inf, inf])


@pytest.mark.slow
@pytest.mark.parametrize("rule", list(Rule))
def test_ten_times_the_trained_length_is_finite_at_extreme_rates(rule: Rule) -> None:
    """Every rate at its limit, on random and on endlessly repeated text, with resets and without."""
    model = make(MemoryConfig(rule=rule, hidden=8, momentum=0.999, retention=1.0, omega=OmegaRuleConfig(2, 1.0)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("inputs.rate" in name or "controls" in name) and name.endswith("bias"):
                parameter.fill_(30.0)
    for rows in (torch.randint(0, 17, (2, 10 * 64 + 1)), torch.zeros(2, 10 * 64 + 1, dtype=torch.long)):
        for plan in (model.plan, model.plan._replace(shard=None)):
            stretches = loss_by_stretch(model, rows, 64, plan=plan)
            assert len(stretches) == 10
            (last,) = by_length(stretches, (10,))
            assert last.perplexity < 17**4  # finite, and no worse than four times as unsure as knowing nothing
