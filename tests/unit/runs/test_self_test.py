"""Operations of a run against float64: all that are chosen here agree, and one that does not is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import atlas
from atlas.config.rules import Rule
from atlas.runs.self_test import Operation, agreement, operations

CPU = torch.device("cpu")
WINDOWS = {"omega": ["model.memory.omega.window=8"], "atlas": ["model.memory.atlas.window=8"]}


LOCALS, GLOBAL = "the local memories' chunks", "the global memory's chunks"
PLAIN = ["rms_norm", "swiglu", "banded_attention"]
ALL = [*PLAIN, "memory_inputs", "qk_projection", "mixed_queries", "gated_branch", LOCALS, GLOBAL]
USED: dict[str, tuple[list[str], list[str]]] = {
    **{f"rule {rule}": ([f"model.memory.rule={rule}", *WINDOWS.get(rule, [])], []) for rule in Rule},
    "multiplicative": (["model.fusion=multiplicative"], []),
    "additive": (["model.fusion=additive"], ["gated_branch"]),
    "no mix": (["model.memory.qk_projection.mix=false"], ["mixed_queries"]),
    "lengths are kept": (["model.memory.qk_projection.renormalise=false"], ["mixed_queries"]),
    "no projection": (["model.memory.qk_projection.range=off"], ["qk_projection", "mixed_queries"]),
    "keys activated": (["model.memory.activate_keys=true"], ["memory_inputs"]),
    "no global memory": (["ablation=no_global"], [GLOBAL]),
    "no memory": (["model.memory.enabled=false"], ALL[len(PLAIN) :]),
}


@pytest.mark.parametrize("name", USED)
def test_what_a_run_uses_agrees_with_float64(name: str) -> None:
    settings, unused = USED[name]
    model = atlas.compose(settings).model
    tested = list(operations(model))
    assert [operation.name for operation in tested] == [one for one in ALL if one not in unused]
    found = agreement(tested, CPU, torch.float32)
    assert (found.operations, found.problem) == (len(tested), "")
    assert 0 < found.error <= found.allowed == 1e-3
    assert found.worst.endswith(tuple(f" of {one.name}" for one in tested))


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
        (not_a_number, "output 0 of scaled differs from float64 by nan% (allowed: 0.1%)"),
    ],
)
def test_an_operation_that_is_wrong_by_a_hundredth_is_named(
    function: Callable[[Tensor], Sequence[Tensor]], told: str
) -> None:
    wrong = Operation("scaled", function, [torch.ones(3)])
    found = agreement([wrong, Operation("sound", lambda x: (x,), [torch.ones(3)])], CPU, torch.float32)
    assert found.problem == told
