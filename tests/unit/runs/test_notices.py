"""What is told before step 1 of settings that do not do what they seem to."""

from __future__ import annotations

import pytest
import torch

import atlas
from atlas.config import ConfigError
from atlas.runs.notices import start_notices

BOTH = ["watch.gradient_jump=rollback", "watch.validation_loss=rollback"]


def test_probes_that_are_a_trigger_and_never_run_are_told() -> None:
    def lines(*overrides: str) -> list[str]:
        return start_notices(atlas.compose(["rollback.triggers=[niah]", *overrides]), torch.device("cpu"))

    told = "rollback.triggers has niah, and niah.enabled=false: no probe can be its trigger"
    assert told in lines("niah=off")
    assert told not in lines()


def test_fewer_watched_rows_than_asked_for_are_told() -> None:
    def told(*overrides: str) -> list[str]:
        lines = start_notices(atlas.compose(list(overrides)), torch.device("cpu"))
        return [line for line in lines if "watch_rows" in line]

    assert told() == told("rollback.watch_rows=8") == []
    assert told("rollback.watch_rows=9") == ["rollback.watch_rows=9: a batch has 8, which are watched"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["watch.gradient_jump=rollback"], []),
        (["rollback=off"], []),
        (
            ["rollback=off", "watch.gradient_jump=rollback"],
            ["watch.gradient_jump=rollback: restores nothing with rollback.enabled=false"],
        ),
        (
            ["rollback=observe", *BOTH],
            [f"{', '.join(BOTH)}: restores nothing with rollback.observe=true"],
        ),
    ],
)
def test_a_watcher_that_cannot_roll_back_is_told(overrides: list[str], told: list[str]) -> None:
    found = start_notices(atlas.compose(overrides), torch.device("cpu"))
    assert [line for line in found if "restores nothing" in line] == told


@pytest.mark.parametrize(
    ("overrides", "odd"),
    [
        ([], ""),
        (["model.width=20", "model.heads=2", "model.memory.enabled=false"], "a head width of 10"),
        (["model.feedforward=12", "model.memory.hidden=10"], "model.feedforward=12, model.memory.hidden=10"),
        (
            ["model.memory.degree=2", "model.memory.feature_width=16"],
            "153 features of model.memory.degree=2",
        ),
        (["model.memory.degree=2", "model.memory.feature_width=14"], ""),
        (["ablation=atlas_rule"], ""),
    ],
)
@pytest.mark.usefixtures("kernel")
def test_widths_without_compiled_kernels_are_told_and_refused_where_these_are_insisted_on(
    overrides: list[str], odd: str
) -> None:
    cpu, why = torch.device("cpu"), "the kernels take multiples of 8"
    found = start_notices(atlas.compose(overrides), cpu)
    assert [line for line in found if "kernels" in line] == (
        [f"no compiled kernels for {odd}, so steps take longer: {why}"] if odd else []
    )
    insisting = atlas.compose([*overrides, "device.kernels=compiled"])
    if not odd:
        assert start_notices(insisting, cpu) == found
        return
    with pytest.raises(ConfigError) as refused:
        start_notices(insisting, cpu)
    assert str(refused.value) == f"device.kernels=compiled: must be auto or torch with {odd}: {why}"
