"""What a measurement may not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from atlas.training.evaluating import evaluating
from atlas.training.watchers import JUDGES
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.record import Record
from atlas.training.watchers.side_effects import changed, left


@torch.no_grad()
def after(act: Callable[[nn.Module], object], place: tuple[int, int] = (0, 10)) -> list[str]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].eval()  # frozen, as a user may have it
    before = left((0, 10), model)
    act(model)
    return changed(before, left(place, model))


def swap(model: nn.Module) -> None:
    weight = next(model.parameters())
    weight[0], weight[1] = weight[1].clone(), weight[0].clone()
    weight.neg_()


def test_each_change_is_seen() -> None:
    cases: dict[str, Callable[[nn.Module], object]] = {
        "0.weight": lambda model: next(model.parameters())[0, 0].nextafter_(torch.tensor(9.0)),
        "1.running_mean": lambda model: model(torch.ones(2, 3)) if model.train() else None,
        "the mode of the model": lambda model: model.eval(),
        "requires_grad of 0.bias": lambda model: model.get_parameter("0.bias").requires_grad_(False),
    }
    for name, act in cases.items():
        assert name in after(act)
    assert after(swap) == ["0.weight"]


def test_what_is_put_back_is_calm() -> None:
    def evaluated(model: nn.Module) -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            model(torch.ones(2, 3))

    assert after(evaluated) == []  # the batch norm that was frozen stays so
    assert after(swap, place=(1, 5)) == []  # a rollback


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c", "d"]])
def test_what_is_told(names: list[str]) -> None:
    found = JUDGES["side_effects"](Record(Facts(steps=100), side_effects=(10, names)))
    assert found is not None
    shown = "a" if len(names) == 1 else "a, b, c and 1 more"
    assert found.seen == f"after step 10, and before the next one, {shown} changed"
