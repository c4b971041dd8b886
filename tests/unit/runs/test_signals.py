"""A signal that comes before a run, or after it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

import pytest

from atlas.runs import signals
from atlas.runs.signals import handled_by, interrupt, listening
from atlas.train import main
from atlas.training.stop import StopRequest


@pytest.mark.parametrize(
    ("rank", "given", "told"),
    [
        ("0", "seed=1", "atlas: stopped by SIGTERM before step 1\n"),
        ("0", "resume=auto", "atlas: stopped by SIGTERM before the first step of this start\n"),
        ("1", "seed=1", ""),
    ],
)
def test_the_command_says_in_one_line_what_stopped_it_before_a_run(
    rank: str, given: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From one rank. The signal comes while the command line is checked."""

    def signalled(arguments: Sequence[str]) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(signals, "_begun", threading.Event())
    monkeypatch.setattr("atlas.train.require_installed", signalled)
    monkeypatch.setattr("sys.argv", ["atlas.train", given])
    assert main() == 130
    assert capsys.readouterr().err == told


def test_after_a_run_a_signal_tells_of_no_step_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_begun", threading.Event())
    with handled_by(interrupt):
        for told in ("stopped by SIGTERM", ""):
            with pytest.raises(KeyboardInterrupt, match=f"^{told}$"):
                signal.raise_signal(signal.SIGTERM)
            with listening(StopRequest()):
                pass
