"""`--help` of every command in experiments/: what it does, how it is called, what it writes."""

from __future__ import annotations

import re
import runpy
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKERS = ("worker.py", "peak.py")  # started by a command
COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "experiments").rglob("*.py")
    if path.name not in WORKERS and '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_how_to_call_it_and_what_it_writes(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / command
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    handler = signal.getsignal(signal.SIGTERM)  # the gate sets its own
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    signal.signal(signal.SIGTERM, handler)
    text, errors = capsys.readouterr()
    module = command.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    assert (ended.value.code, errors) == (0, "")
    assert any(line.startswith((f"python {command}", f"python -m {module}")) for line in text.splitlines())
    assert re.search(r"\b[Ww]rites\b|go into the folder", text)
