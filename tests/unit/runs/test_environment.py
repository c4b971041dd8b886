"""What a run ran on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atlas.config import Kernels
from atlas.kernels.library import use
from atlas.runs.environment import PeakMemory, device_name

CPU = torch.device("cpu")
BLOCK = 2**26  # bytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux starts its record anew")
def test_the_peak_of_an_earlier_run_is_not_that_of_the_next() -> None:
    peaks = []
    for blocks in (1, 5, 1):
        peak = PeakMemory(CPU)
        held = [torch.ones(BLOCK, dtype=torch.uint8) for _ in range(blocks)]
        found = peak.read()
        assert found is not None
        peaks.append(found)
        del held
    first, second, third = peaks
    assert second - first == pytest.approx(4 * BLOCK, abs=BLOCK / 2)
    assert third - first == pytest.approx(0, abs=BLOCK / 2)


def test_a_peak_that_the_system_does_not_tell_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the record cannot be started anew, a run below the peak of an earlier one has none of its own."""
    monkeypatch.setattr("atlas.runs.environment._restart_record", lambda: False)
    heights = iter([1000, 1000, 1000, 1500])
    monkeypatch.setattr("atlas.runs.environment._highest_bytes", lambda: next(heights))
    assert PeakMemory(CPU).read() is None
    assert PeakMemory(CPU).read() == 1500


def test_the_name_of_a_cpu_tells_its_threads() -> None:
    assert device_name(CPU).startswith("cpu (")
    assert f", {torch.get_num_threads()} threads, " in device_name(CPU)
    use(Kernels.torch)
    assert device_name(CPU).endswith(" threads, PyTorch kernels)")
