"""`--help` of the commands that read a run: what RUN may be, and when the exit status is 0."""

from __future__ import annotations

from importlib import import_module

import pytest


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert import_module(f"atlas.{command}").main(["--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["evaluate", "export", "generate", "niah"])
def test_help_tells_of_latest(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "`latest`, the newest run in outputs/runs." in help_of(command, capsys)


def test_help_of_niah_asks_for_the_levels_that_were_asked_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Exit status: 0 every level that was asked passed; 1 one failed" in help_of("niah", capsys)
