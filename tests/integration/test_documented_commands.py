"""Every command of the README and of docs/ is one that there is, and `atlas.train` takes its settings."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

import atlas

ROOT = Path(__file__).parents[2]
LINES = sorted(
    {
        line.strip()
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        if re.match(r"    (python|torchrun .*?) -m ", line)
    }
)
PLACES = ("hydra", "resume=", "sweep.", "init_from=")  # of this machine, of a sweep, or Hydra's own
ELSEWHERE = ("--config-dir", "counting", "data.path=")  # plugins.md has a test of its own; a store of the reader's


def module(line: str) -> str:
    return line.split(" -m ")[1].split()[0]


def test_every_command_is_there() -> None:
    assert len(LINES) > 50
    assert [line for line in LINES if find_spec(module(line)) is None] == []


@pytest.mark.slow
def test_the_settings_of_every_training_command_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a setting with several values the first one."""
    monkeypatch.chdir(ROOT)
    checked = 0
    for line in LINES:
        if module(line) != "atlas.train" or any(text in line for text in ELSEWHERE):
            continue
        given = [
            text for text in shlex.split(line, comments=True) if "=" in text and not text.startswith((*PLACES, "-"))
        ]
        first = [re.sub(r"=tag\(.*", "=1e-3", re.sub(r"=([^,\[({]+),.*", r"=\1", text)) for text in given]
        atlas.compose(first)
        checked += 1
    assert checked > 20
