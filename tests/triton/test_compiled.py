"""Blocks compiled by `torch.compile` take the Triton kernels as operators."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from atlas.kernels import gpu
from atlas.training import compiled
from tests.unit.training.test_compiled import losses

pytestmark = pytest.mark.skipif(
    not (gpu.interpreted() and find_spec("triton")), reason="needs triton and TRITON_INTERPRET=1: make triton"
)


@pytest.mark.parametrize("rule", ["gd", "momentum"])
def test_compiled_blocks_launch_the_kernels(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    overrides = ["device.kernels=triton", "device.precision=bf16", f"model.memory.rule={rule}", "model.layers=1"]
    found, wanted = (losses(overrides, compiled=one, steps=2) for one in (True, False))
    assert found == pytest.approx(wanted, rel=1e-3)
