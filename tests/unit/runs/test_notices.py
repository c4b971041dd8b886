"""What is told before step 1 of settings that do not do what they seem to."""

from __future__ import annotations

import pytest
import torch

import atlas
from atlas.runs.notices import start_notices

BOTH = ["watch.gradient_jump=rollback", "watch.validation_loss=rollback"]


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
