from __future__ import annotations

import pytest
import torch

from atlas.config import GateAction, GateConfig
from atlas.parallel.ranks import Ranks
from atlas.training.gate_monitor import GateMonitor, GateStatistics, _places, gate_numbers, over_ranks


class Beside(Ranks):
    """A second rank, whose rows are other numbers."""

    world = 2

    def __init__(self, other: list[float]) -> None:
        self.other = torch.tensor([other], dtype=torch.float64)

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat((rows, self.other))


def of_std(std: float) -> GateStatistics:
    return GateStatistics(0.5, std, 0.0)


def test_statistics_over_all_layers() -> None:
    found = GateStatistics(*gate_numbers([torch.tensor([[0.0], [1.0], [0.5]]), torch.tensor([[0.95]])]).tolist())
    values = torch.tensor([0.0, 1.0, 0.5, 0.95])
    assert found == pytest.approx((values.mean().item(), values.std().item(), 0.75))


def test_statistics_over_ranks_count_each_gate_once() -> None:
    """The rows of two ranks are not equally long where a row is a document."""
    gates = torch.rand(30_000, generator=torch.Generator().manual_seed(0)).square()
    short, long = (gate_numbers([part]).tolist() for part in (gates[:5000], gates[5000:].sqrt()))
    whole = gate_numbers([torch.cat((gates[:5000], gates[5000:].sqrt()))]).tolist()
    found = over_ranks(GateStatistics(*short), 5000, Beside([*long, 25_000]))
    assert found == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 4096, 128), (4096, 64, 32), (16, 2048, 96)])
def test_a_large_batch_is_sampled_over_rows_tokens_and_features(shape: tuple[int, int, int]) -> None:
    """Whatever dimension the gates vary along, and where nothing varies at the first token of a chunk."""
    for dim in range(3):
        along = torch.rand(shape[dim], generator=torch.Generator().manual_seed(dim)).round()
        gates = along.view([-1 if at == dim else 1 for at in range(3)]).expand(shape).clone()
        gates[:, ::16] = 0.5
        whole = [gates.mean().item(), gates.std().item(), ((gates - 0.5).abs() > 0.4).float().mean().item()]
        assert gate_numbers([gates]).tolist() == pytest.approx(whole, abs=0.01)


def test_the_places_of_a_large_batch_are_distinct_and_the_same_each_time() -> None:
    gates = torch.arange(2.0**19).view(2, 2048, 128) / 2**19
    before = torch.get_rng_state()
    assert gate_numbers([gates]).tolist() == gate_numbers([gates]).tolist()
    assert torch.equal(torch.get_rng_state(), before)
    places = _places(2**19, 7, gates.device)
    assert isinstance(places, torch.Tensor)
    assert (places // 7).tolist() == list(range(2**19 // 7))
    assert torch.bincount(places // 128 % 2048 % 16).min() > 0.99 * len(places) / 16


def test_a_small_batch_is_read_whole() -> None:
    gates = torch.rand(2, 512, 128, generator=torch.Generator().manual_seed(0))
    values = gates.flatten()
    share = ((values - 0.5).abs() > 0.4).float().mean()
    assert torch.equal(gate_numbers([gates]), torch.stack((values.mean(), values.std(), share)))


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
