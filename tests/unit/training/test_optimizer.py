from __future__ import annotations

from math import cos, pi

import pytest
import torch

from atlas.training.optimizer import Schedule, ScheduledOptimizer, adamw, muon, parameter_groups


def scheduled(warmup: int = 10, steps: int = 110, lr_min_ratio: float = 0.1) -> ScheduledOptimizer:
    parameter = torch.nn.Parameter(torch.ones(2))
    return ScheduledOptimizer([torch.optim.SGD([parameter], lr=1.0)], 2.0, steps, warmup, lr_min_ratio)


@pytest.mark.parametrize(
    ("step", "lr"),
    [(1, 0.2), (5, 1.0), (10, 2.0), (35, 2 * (0.1 + 0.9 * (1 + cos(pi / 4)) / 2)), (60, 1.1), (110, 0.2)],
)
def test_warm_up_then_cosine(step: int, lr: float) -> None:
    assert scheduled().lr_at(step) == pytest.approx(lr)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", {5: 1.0, 10: 2.0, 35: 1.55, 60: 1.1, 110: 0.2}),
        ("constant", {5: 1.0, 10: 2.0, 60: 2.0, 110: 2.0}),
        ("wsd", {5: 1.0, 10: 2.0, 88: 2.0, 99: 1.1, 110: 0.2}),  # the last fifth of 110 steps begins after step 88
    ],
)
def test_the_other_schedules(schedule: Schedule, rates: dict[int, float]) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = ScheduledOptimizer([torch.optim.SGD([parameter], lr=1.0)], 2.0, 110, 10, 0.1, schedule, decay=0.2)
    assert {step: optimizer.lr_at(step) for step in rates} == pytest.approx(rates)


def test_a_decay_over_all_steps_begins_after_the_warm_up() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    whole, linear = (
        ScheduledOptimizer([torch.optim.SGD([parameter], lr=1.0)], 2.0, 110, 10, 0.1, schedule, decay=1.0)
        for schedule in ("wsd", "linear")
    )
    assert [whole.lr_at(step) for step in range(1, 111)] == [linear.lr_at(step) for step in range(1, 111)]


def test_a_warm_up_longer_than_the_run_ends_with_it_and_none_starts_at_the_top() -> None:
    assert scheduled(warmup=500).lr_at(110) == pytest.approx(2.0)
    assert scheduled(warmup=0, steps=1).lr_at(1) == pytest.approx(0.2)
    assert scheduled(warmup=0, steps=1000).lr_at(1) == pytest.approx(2.0, rel=1e-4)


def test_groups_that_were_made_with_a_lower_rate_keep_their_ratio_to_the_highest() -> None:
    high, low, alone = (torch.nn.Parameter(torch.ones(1)) for _ in range(3))
    both = torch.optim.SGD([{"params": [high], "lr": 0.4}, {"params": [low], "lr": 0.1}], lr=1.0)
    optimizer = ScheduledOptimizer([both, torch.optim.SGD([alone], lr=0.0)], 2.0, 10, 0, 1.0)
    for parameter in (high, low, alone):
        parameter.grad = torch.ones(1)
    assert optimizer.step(1) == 2.0
    assert [high.item(), low.item(), alone.item()] == [-1.0, 0.5, 1.0]


def test_a_step_uses_the_rate_of_the_schedule_scale_and_burst_included() -> None:
    optimizer = scheduled(warmup=0, lr_min_ratio=1.0)
    (parameter,) = optimizer.optimizers[0].param_groups[0]["params"]
    optimizer.scale, optimizer.burst = 0.5, 3.0
    parameter.grad = torch.tensor([1.0, 0.0])
    assert optimizer.step(1) == pytest.approx(3.0)
    assert parameter.tolist() == pytest.approx([-2.0, 1.0])
    other = scheduled()
    other.load_state_dict(optimizer.state_dict())
    assert (other.scale, other.burst) == (0.5, 1.0)  # a burst is the fault's, not the run's


def test_only_matrices_of_linear_layers_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 2), torch.nn.RMSNorm(2))
    matrices, rest = parameter_groups(model)
    assert [tuple(parameter.shape) for parameter in matrices] == [(2, 3)]
    assert [tuple(parameter.shape) for parameter in rest] == [(4, 3), (2,), (2,)]
    settings = {"steps": 10, "lr": 0.5, "weight_decay": 0.1, "betas": [0.9, 0.95], "warmup": 0, "lr_min_ratio": 1.0}
    for build in (adamw, muon):
        optimizer = build(model=model, **settings)  # type: ignore[arg-type]
        before = [parameter.detach().clone() for parameter in (*matrices, *rest)]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(1)
        after = [*matrices, *rest]
        torch.testing.assert_close(after[0], 0.95 * before[0])
        assert all(torch.equal(now, then) for now, then in zip(after[1:], before[1:], strict=True))
