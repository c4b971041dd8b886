"""What a logger that takes pictures gets of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import atlas
from atlas.config import RunConfig
from atlas.telemetry.sinks import Sink


class Album(Sink):
    """A logger that keeps the pictures."""

    takes_pictures = True
    found: list[tuple[str, bytes, int]] = []  # noqa: RUF012 (read after the run, which makes the logger)

    def picture(self, name: str, file: Path, step: int) -> None:
        self.found.append((name, file.read_bytes()[:4], step))

    def event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "start":
            self.found.clear()


@pytest.mark.slow
def test_the_heat_map_of_the_last_probe(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("album")
    vars(module)["Album"] = Album
    monkeypatch.setitem(sys.modules, "album", module)
    probe = ["niah.enabled=true", "niah.levels=[recall]", "niah.samples=2", "niah.depths=[0.0]"]
    config = tiny(*probe, "train.steps=2", "calibration=off", "trust=[album]")
    config.logger = {"_target_": "album.Album"}
    atlas.train(config, tmp_path)
    assert Album.found == [("niah/needles found", b"\x89PNG", 2)]
    assert (tmp_path / "niah_training.png").is_file()
