from __future__ import annotations

import pytest
import torch

import atlas
from atlas.training.update_ratio import copied, update_ratios


def test_a_ratio_is_the_change_over_the_size_of_all_weights_of_a_part() -> None:
    model = atlas.build_model(atlas.compose(["model.width=32", "model.feedforward=32", "model.layers=2"]))
    before = copied(model)
    with torch.no_grad():
        model.embedding.weight.mul_(1.5)
        for name, parameter in model.named_parameters():
            if ".attention." in name:
                parameter.mul_(0.9)
    found = update_ratios(before, model)
    assert found.pop("update_ratio/embedding") == pytest.approx(0.5)
    assert found.pop("update_ratio/attention") == pytest.approx(0.1)
    assert set(found) == {
        f"update_ratio/{part}"
        for part in ("norm", "feedforward_norm", "persistent", "memory", "gate", "out", "feedforward")
    }
    assert set(found.values()) == {0.0}
    assert update_ratios({}, model) == {}


def test_a_part_that_was_zero_has_no_ratio() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    torch.nn.init.zeros_(model[0].weight)
    before = copied(model)
    torch.nn.init.ones_(model[0].weight)
    assert update_ratios(before, model) == {"update_ratio/0": None}
