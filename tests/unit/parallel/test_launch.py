"""Refusals of what torchrun was asked to do."""

from __future__ import annotations

import re

import pytest

from atlas.config import ConfigError
from atlas.parallel.launch import current, launched, refuse_launch, start_timeout_of
from atlas.parallel.ranks import ALONE


def test_a_restart_needs_a_folder_to_go_on_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    message = "hydra.run.dir: must be given, with resume=auto, for torchrun --max-restarts"
    for arguments in ([], ["resume=auto"], ["hydra.run.dir=here"], ["hydra.run.dir=here", "resume=null"]):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            refuse_launch(arguments, False)
    refuse_launch(["hydra.run.dir=here", "resume=auto"], False)
    refuse_launch(["resume=outputs/runs/one"], False)


def test_one_process_under_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launched() as ranks:
        assert ranks is current() is ALONE


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a number"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"},
            "WORLD_SIZE=2: must be set together with LOCAL_RANK, MASTER_PORT, as torchrun does",
        ),
    ],
)
def test_an_environment_that_does_not_tell_the_rank_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"), launched():
        pass


def test_the_time_for_the_start_is_read_from_the_command_line() -> None:
    assert start_timeout_of(["parallel.start_timeout_s=9", "seed=1", "parallel.start_timeout_s=2"]) == 2
    for refused in ("soon", "1e300", "nan", "0.2"):
        assert start_timeout_of([f"parallel.start_timeout_s={refused}"]) == start_timeout_of([]) == 600
