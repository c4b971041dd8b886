from __future__ import annotations

import pytest
import torch

from atlas.config import GateAction, GateConfig
from atlas.training.watch.gate_monitor import GateMonitor, GateStatistics, gate_numbers


def of_std(std: float) -> GateStatistics:
    return GateStatistics(0.5, std, 0.0)


def test_statistics_over_all_layers() -> None:
    found = GateStatistics(*gate_numbers([torch.tensor([[0.0], [1.0], [0.5]]), torch.tensor([[0.95]])]).tolist())
    values = torch.tensor([0.0, 1.0, 0.5, 0.95])
    assert found == pytest.approx((values.mean().item(), values.std().item(), 0.75))


def test_a_large_batch_is_sampled_by_tokens() -> None:
    gates = torch.rand(2, 4096, 128, generator=torch.Generator().manual_seed(0))
    seen = gates[:, ::8]
    polarised = ((seen < 0.1) | (seen > 0.9)).float().mean().item()
    assert gate_numbers([gates]).tolist() == pytest.approx([seen.mean().item(), seen.std().item(), polarised], rel=1e-4)


@pytest.mark.parametrize(
    ("start", "check", "complains"),
    [
        (0.02, 0.03, False),  # variance 2.25 times
        (0.02, 0.0244, True),  # 1.49 times
        (0.02, 0.0246, False),  # 1.51 times
        (0.4, 0.1, False),  # shrunk, but not trivial
        (0.4, 0.09, True),
    ],
)
def test_growth_is_checked_once(start: float, check: float, complains: bool) -> None:
    monitor = GateMonitor(GateConfig())
    assert monitor.check(100, of_std(start)) is None
    assert monitor.check(499, of_std(0.011)) is None
    assert (monitor.check(500, of_std(check)) is not None) is complains
    assert monitor.check(501, of_std(0.011)) is None


def test_the_complaint_has_its_numbers() -> None:
    monitor = GateMonitor(GateConfig())
    monitor.check(100, of_std(0.02))
    assert monitor.check(500, of_std(0.02)) == (
        "gate variance 0.0004 at step 500 (std 0.02) is below train.gate.variance_ratio_min=1.5 times 0.0004 "
        "at step 100"
    )


def test_dead_gates_are_told_once_until_they_recover() -> None:
    monitor = GateMonitor(GateConfig())
    assert monitor.check(99, of_std(0.001)) is None
    said = [monitor.check(step, of_std(std)) for step, std in [(100, 0.009), (101, 0.008), (102, 0.02), (103, 0.005)]]
    assert said == [
        "gate std 0.009 at step 100 is below train.gate.std_min=0.01",
        None,
        None,
        "gate std 0.005 at step 103 is below train.gate.std_min=0.01",
    ]


def test_a_restored_monitor_continues() -> None:
    first, second = GateMonitor(GateConfig()), GateMonitor(GateConfig())
    first.check(100, of_std(0.005))
    second.load_state_dict(first.state_dict())
    assert second.check(101, of_std(0.005)) is None
    assert second.start_variance == pytest.approx(0.005**2)


def test_off_or_without_memory_nothing_is_said() -> None:
    assert GateMonitor(GateConfig(monitor=GateAction.off)).check(200, of_std(0.0)) is None
    assert GateMonitor(GateConfig()).check(200, None) is None
