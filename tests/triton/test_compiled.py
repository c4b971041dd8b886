"""Blocks compiled by `torch.compile` take the Triton kernels as operators; what is launched was compiled before."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from atlas.kernels import gpu
from atlas.training import compiled
from tests.unit.training.test_compiled import losses

ROOT = Path(__file__).parents[2]
KERNELS = ("scan_forward", "scan_backward", "products_forward", "products_backward")
pytestmark = pytest.mark.skipif(
    not (gpu.interpreted() and find_spec("triton")), reason="needs triton and TRITON_INTERPRET=1: make triton"
)


@pytest.mark.parametrize("rule", ["gd", "momentum"])
def test_compiled_blocks_launch_the_kernels(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    overrides = ["device.kernels=triton", "device.precision=bf16", f"model.memory.rule={rule}", "model.layers=1"]
    found, wanted = (losses(overrides, compiled=one, steps=1) for one in (True, False))
    assert found == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("rule", ["gd", "momentum"])
def test_a_step_launches_no_kernel_that_was_not_compiled_before(rule: str) -> None:
    """Else it would be compiled twice, and an error of the compiler would end the run."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.triton.launched", f"model.memory.rule={rule}", "model.layers=1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    kernels = {name: done.stdout.count(f"{name}: launched") for name in KERNELS}
    assert kernels == dict.fromkeys(KERNELS, 4) | dict.fromkeys(KERNELS[2:], 2)  # scans of two memories in two steps
    assert "NOT COMPILED" not in done.stdout
