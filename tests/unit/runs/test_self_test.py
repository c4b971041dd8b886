"""Operations of a run against float64: all that are chosen here agree, and one that does not is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import atlas
from atlas.config.rules import Rule
from atlas.runs.self_test import Operation, disagreement, operations

CPU = torch.device("cpu")
WINDOWS = {"omega": ["model.memory.omega.window=8"], "atlas": ["model.memory.atlas.window=8"]}


@pytest.mark.parametrize("rule", Rule)
def test_what_a_run_uses_agrees_with_float64(rule: str) -> None:
    model = atlas.compose([f"model.memory.rule={rule}", *WINDOWS.get(rule, [])]).model
    names = [operation.name for operation in operations(model)]
    assert (len(names), disagreement(operations(model), CPU, torch.float32)) == (9, "")


def wrong_output(x: Tensor) -> Sequence[Tensor]:
    return (x + (0.01 if x.dtype is torch.float32 else 0.0),)


def wrong_gradient(x: Tensor) -> Sequence[Tensor]:
    return (x.detach() + 1.01 * (x - x.detach()) if x.dtype is torch.float32 else x,)


def not_a_number(x: Tensor) -> Sequence[Tensor]:
    return (x * (float("nan") if x.dtype is torch.float32 else 1.0),)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (wrong_output, "output 0 of scaled differs from float64 by 1.0% (allowed: 0.1%)"),
        (wrong_gradient, "the gradient of input 0 of scaled differs from float64 by 1.0% (allowed: 0.1%)"),
        (not_a_number, "the gradient of input 0 of scaled differs from float64 by nan% (allowed: 0.1%)"),
    ],
)
def test_an_operation_that_is_wrong_by_a_hundredth_is_named(
    function: Callable[[Tensor], Sequence[Tensor]], told: str
) -> None:
    wrong = Operation("scaled", function, [torch.ones(3)])
    assert disagreement([wrong], CPU, torch.float32) == told
