"""Watchers of weights, optimiser, time and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from atlas.training.optimizer import ScheduledOptimizer, adamw
from atlas.training.watchers import JUDGES
from atlas.training.watchers.facts import Facts
from atlas.training.watchers.frozen_file import FrozenFile
from atlas.training.watchers.moments import second_moments, share_with_moments
from atlas.training.watchers.observations import Measured
from atlas.training.watchers.record import FIRST_STEPS, LOOKS, STEPS, Record


def record_of(*measured: Measured) -> Record:
    record = Record(Facts(steps=1000), step=200)
    for one in measured:
        record.add_measured(one)
    return record


def told(name: str, record: Record) -> str | None:
    found = JUDGES[name](record)
    return None if found is None else found.seen


def test_parameters_that_no_step_moves_are_named() -> None:
    names = ["a.weight", "b.weight", "c.weight", "d.weight"]
    frozen = Measured(100, {}, names, 0.1)
    assert told("frozen_weights", record_of(frozen, replace(frozen, step=200))) == (
        "steps 100 and 200 moved no element of a.weight, b.weight, c.weight and 1 more"
    )
    assert told("frozen_weights", record_of(frozen)) is None
    warming = record_of(frozen, frozen)
    warming.facts = replace(warming.facts, warmup=2000)
    assert told("frozen_weights", warming) is None
    carried = record_of(*[Measured(100, {}, ["blocks.0.memory.global_memory.0.up"], 0.1)] * 2)
    assert told("frozen_weights", carried) is not None
    carried.facts = replace(carried.facts, unused=(".global_memory.",))
    assert told("frozen_weights", carried) is None
    assert told("frozen_weights", record_of(frozen, Measured(200, {}, ["e.weight"], 0.1))) is None


def test_updates_lost_to_rounding_are_told() -> None:
    rounded = Measured(100, {}, [], 0.7)
    seen = "steps 100 and 200 moved 30.0% of all weights each, at most"
    assert told("frozen_weights", record_of(rounded, replace(rounded, step=200))) == seen
    assert told("frozen_weights", record_of(rounded, Measured(200, {}, [], 0.1))) is None


def test_gradients_that_are_never_cleared_are_told() -> None:
    summed, clean = Measured(100, kept_gradients=True), Measured(200)
    assert told("gradients", record_of(summed, summed)) == "a step begins with the gradients of the steps before it"
    assert told("gradients", record_of(summed, clean)) is None


def optimizer_of(model: nn.Module) -> ScheduledOptimizer:
    settings = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.95), "warmup": 0, "lr_min_ratio": 0.1}
    return adamw(model=model, steps=10, **settings)  # type: ignore[arg-type]


def test_lost_moments_are_told_after_the_first_step() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = optimizer_of(model)

    def step() -> None:
        model(torch.randn(2, 4)).square().sum().backward()
        optimizer.step(1)

    assert share_with_moments(optimizer) == 0.0
    step()
    assert share_with_moments(optimizer) == 1.0
    fresh = optimizer_of(model)
    fresh.load_state_dict(optimizer.state_dict())
    assert share_with_moments(fresh) == 1.0
    for state in fresh.optimizers[0].state.values():
        state["exp_avg"].zero_()
        state["exp_avg_sq"].zero_()
    assert share_with_moments(fresh) == 0.0


def test_an_epsilon_that_dwarfs_gradients_is_told() -> None:
    small = Measured(100, below_epsilon=0.9)
    assert told("epsilon", record_of(small, small)) == (
        "90% of the weights have gradients smaller than the optimiser's epsilon"
    )
    assert told("epsilon", record_of(small)) is None
    assert told("epsilon", record_of(small, Measured(200, below_epsilon=0.1))) is None


@pytest.mark.parametrize(("eps", "share"), [(1e-8, 0.0), (0.015, 0.8), (0.1, 1.0)])
def test_gradients_are_compared_with_epsilon_by_parameter(eps: float, share: float) -> None:
    """16 elements with gradients of 0.01, 4 of 0.02, and 4 without: after one step and after ten."""
    model = nn.ParameterList([nn.Parameter(torch.ones(size)) for size in (16, 4, 4)])
    optimizer = optimizer_of(model)
    for group in optimizer.optimizers[0].param_groups:
        group["eps"] = eps
    assert second_moments(optimizer) == (0.0, 0.0)  # it has none yet
    for step in range(1, 11):
        for parameter, gradient in zip(model, (0.01, 0.02), strict=False):
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step(step)
        assert second_moments(optimizer) == pytest.approx((share, (16 * 0.01**2 + 4 * 0.02**2) ** 0.5))


def given(norms: Sequence[float], *moments: float, clip: float = 0.0) -> Record:
    """A record of these gradients, whose second moment was measured so every 100 steps."""
    record = Record(Facts(steps=1000, clip=clip))
    for step, norm in enumerate(norms, start=1):
        record.add_step(step, 2.0, norm, 0.1)
        if step % 100 == 0:
            record.add_measured(Measured(step, second_moment=moments[step // 100 - 1]))
    return record


def test_a_second_moment_of_no_gradient_of_late_is_told() -> None:
    seen = (
        "the optimiser's second moment is that of gradients with a norm of 90; the largest of the last 100 that it "
        "was given has 2"
    )
    assert told("second_moment", given([2.0] * 200, 1.5, 90.0)) == seen
    assert told("second_moment", given([2.0] * 200, 1.5, 90.0, clip=1.0)) == seen.replace("has 2", "has 1")
    found = JUDGES["second_moment"](given([2.0] * 200, 1.5, 90.0))
    assert found is not None
    assert found.since == 99  # a rollback goes back to before it
    assert told("second_moment", given([2.0] * 199 + [90.0], 1.5, 90.0)) is None  # a gradient was that large
    assert told("second_moment", given([30.0] * 20 + [1.0] * 180, 13.0, 9.5)) is None  # betas of 0.999, no clipping
    assert told("second_moment", given([2.0] * 210, 1.5, 90.0)) is None  # of another step


@pytest.mark.parametrize(
    ("kept", "seen"),
    [
        ((0.0, 1.0), "at step 50 only 0% of the parameters had moments in the optimiser"),
        ((1.0, 1.0), None),
        ((0.0, 0.0), None),  # an optimiser without moments
        (None, None),
    ],
)
def test_optimizer_state(kept: tuple[float, float] | None, seen: str | None) -> None:
    record = Record(Facts(steps=100, first_step=50), kept_moments=kept)
    assert told("optimizer_state", record) == seen


def timed(seconds: Sequence[float]) -> Record:
    record = Record(Facts(steps=1000))
    for step, taken in enumerate(seconds, start=1):
        record.add_step(step, 2.0, 1.0, taken)
    return record


def test_a_run_that_becomes_slow_is_told() -> None:
    calm, slow = [0.1] * (FIRST_STEPS + 2 * STEPS), [0.5] * STEPS
    assert told("slowdown", timed([*calm, *slow])) == ("a step takes 0.5 s, 5.0 times as long as at the start (0.1 s)")
    assert told("slowdown", timed([*calm, *slow[: STEPS // 2]])) is None
    assert told("slowdown", timed([*calm, 3600.0])) is None  # the machine slept
    assert told("slowdown", timed([*calm, *[0.3] * STEPS])) is None
    assert told("slowdown", timed([0.0005] * 110 + [0.003] * STEPS)) is None  # the interpreter's time
    assert told("slowdown", timed([2.0] * FIRST_STEPS + [0.1] * 150)) is None


def looked_at(sizes: Sequence[float]) -> Record:
    record = Record(Facts(steps=1000))
    for place, size in enumerate(sizes, start=1):
        record.step = 10 * place
        record.add_memory({"the process": int(size * 1e6)})
    return record


def test_memory_that_grows_at_every_look_is_told() -> None:
    grows = [500.0 + 20 * look for look in range(LOOKS)]
    assert told("memory_grows", looked_at([500.0] * 5 + grows)) == (
        "the memory of the process has grown by 2 MB a step in the last 100 steps, to 0.7 GB"
    )
    assert told("memory_grows", looked_at(grows[1:])) is None  # too few looks
    assert told("memory_grows", looked_at([*grows[:6], grows[5], *grows[6:]])) is None  # it has stopped once
    assert told("memory_grows", looked_at([500.0 + look for look in range(LOOKS)])) is None  # little
    assert told("memory_grows", looked_at([5000.0 + 20 * look for look in range(LOOKS)])) is None  # 4 % of it
    once = [500.0, *(560.0 + 0.01 * look for look in range(1, LOOKS))]  # recorded in a default run: once, then bytes
    assert told("memory_grows", looked_at(once)) is None


def test_a_clock_that_jumps_is_told() -> None:
    record = Record(Facts(steps=10), clock_jump=-3600.0)
    assert told("clock", record) == "the wall clock jumped by -3600 s between two steps"
    record.clock_jump = 5.0
    assert told("clock", record) is None


def test_removed_files_are_named() -> None:
    record = Record(Facts(steps=10), missing=["metrics.jsonl", "offline-run-1"])
    assert told("files", record) == "metrics.jsonl, offline-run-1 was removed while the run went on"
    assert told("files", Record(Facts(steps=10))) is None


def test_edited_settings_are_named() -> None:
    record = Record(Facts(steps=10), edited=["config.yaml"])
    assert told("files", record) == "config.yaml was edited while the run went on"


def test_a_file_is_edited_where_its_content_is_another(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 0\n")
    file = FrozenFile(path)
    os.utime(path, ns=(0, 0))  # touched
    assert not file.edited()
    path.unlink()
    assert not file.edited()
    path.write_text("seed: 0\n")
    assert not file.edited()
    path.write_text("seed: 1\n")
    assert [file.edited(), file.edited()] == [True, False]
    assert not FrozenFile(tmp_path / "none").edited()


def with_norms(*norms: float) -> Record:
    record = record_of()
    for step, norm in enumerate(norms, 1):
        record.add_step(step, 2.0, norm, 0.1)
    return record


@pytest.mark.parametrize("later", [0, 9])
def test_a_gradient_far_larger_than_those_before_it_is_told(later: int) -> None:
    """In time for a rollback, though watchers look every 10 steps; and not again when these steps are over."""
    usual = [400.0] * 10 + [2.0, 5.0] * 20
    record = with_norms(*usual, 351.0, *[3.0] * later)
    found = JUDGES["gradient_jump"](record)
    assert found is not None
    assert found.seen == "the gradient of step 51 has a norm of 351; the median of the 20 steps before is 3.5"
    assert (found.value, found.since) == (351.0, 50)
    assert told("gradient_jump", with_norms(*usual, 351.0, *[3.0] * 10)) is None
    assert told("gradient_jump", with_norms(*usual, 349.0, *[3.0] * later)) is None


def test_a_jump_soon_after_another_one_is_told() -> None:
    calm = [2.0] * 30
    assert told("gradient_jump", with_norms(*calm, 190.0, *[2.0] * 5, 13.0, *[2.0] * 3)) is None
    assert told("gradient_jump", with_norms(*calm, 190.0, *[2.0] * 5, 1900.0, *[2.0] * 3)) is not None


def test_gradients_that_grow_step_by_step_are_no_jump() -> None:
    norms = [1.3**step for step in range(60)]
    assert all(told("gradient_jump", with_norms(*norms[: end + 1])) is None for end in range(60))
    assert told("gradient_jump", with_norms(1.0, 1.0, 1000.0)) is None, "too few steps to know what is usual"
    assert told("gradient_jump", with_norms(*[0.0] * 30, 5.0)) is None, "batches without a target, then one with"


@pytest.mark.parametrize(("jump", "seen"), [(0.02, "2.00%"), (-0.02, "2.00%"), (0.004, None)])
def test_a_step_that_changes_the_weights_as_no_other_is_told(jump: float, seen: str | None) -> None:
    record = record_of()
    norm = 100.0
    for step in range(60):
        record.add_step(step, 2.0, 1.0, 0.1, weights=norm)
        norm *= 1 + (jump if step == 40 else 0.0005 * (-1) ** step)
    usual = "a step changed the norm of all weights by {}, where 0.05% is usual"
    assert told("weights_jump", record) == (seen and usual.format(seen))
    again = Record(record.facts)
    again.load_state_dict(record.state_dict())
    assert again.weight_norms == record.weight_norms


def test_weights_that_change_fast_at_first_are_no_jump() -> None:
    """A warm-up, then steps of one size, then a decay."""
    record, norm = record_of(), 10.0
    for step in range(150):
        record.add_step(step, 2.0, 1.0, 0.1, weights=norm)
        norm *= 1 + 0.01 * min(step / 50, 1.0, (150 - step) / 50)
        assert told("weights_jump", record) is None


def test_steps_that_do_not_follow_the_gradient() -> None:
    def seen(*cosines: float, loss: float = 5.0) -> str | None:
        facts = Facts(steps=100, uniform=5.5, baseline=2.5)
        found = JUDGES["updates"](Record(facts, descents=list(cosines), losses=[loss]))
        return None if found is None else found.seen

    assert seen(0.02, 0.01, -0.03) == "the cosine between steps and the direction in which the loss falls is 0.000"
    assert seen(-0.5, -0.5) is None
    assert seen(0.02, -0.01, 0.04) is None
    assert seen(-0.1, -0.1, -0.1, loss=3.0) is None  # the loss has fallen: an average that lags behind
