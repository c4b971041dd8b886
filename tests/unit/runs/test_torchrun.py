"""A rank of torchrun, whose agent ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas.runs.signals import listening
from atlas.runs.torchrun import RUN_ID, ending_with_torchrun
from atlas.training.stop import StopRequest

SOON = 10.0  # seconds


def started(work: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.001)


def test_a_rank_is_asked_to_stop_when_its_agent_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_ID, "of this test")
    ready, told = tmp_path / "ready", tmp_path / "told"

    def rank() -> None:
        request = StopRequest()
        with ending_with_torchrun(), listening(request):
            ready.touch()
            until(lambda: request.by)
        told.with_suffix(".part").write_text(request.by)
        told.with_suffix(".part").rename(told)

    def agent() -> None:
        started(rank)
        until(ready.exists)

    os.waitpid(started(agent), 0)
    until(told.exists)
    assert told.read_text() == "the end of the process that started the ranks"
