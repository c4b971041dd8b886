"""The heat map is a PNG, and drawing it changes nothing of a notebook's own pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot as plt

from atlas.report.heatmap import draw_heatmaps

CELL = {"task": "multi_key", "haystack": "noise", "length": 512, "depth": 0.5, "accuracy": 0.9, "control": None}


@pytest.fixture
def backend() -> Iterator[str]:
    """That of a notebook, for example, with a picture of the user's."""
    before = matplotlib.get_backend()
    matplotlib.use("svg")
    plt.figure()
    yield "svg"
    plt.close("all")
    matplotlib.use(before)


def test_a_heat_map_leaves_the_backend_and_the_open_pictures_as_they_are(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "niah.png"
    draw_heatmaps([CELL, {**CELL, "depth": None}], "step 7: needles found, %", path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert matplotlib.get_backend() == backend
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("name", ["run$x^$", "a$\\bad$", "\udcff"], ids=["open formula", "no symbol", "no UTF-8"])
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    draw_heatmaps([CELL], f"{name}, step 7: needles found, %", tmp_path / "niah.png")
    assert (tmp_path / "niah.png").exists()
