"""Depth x length heat maps of the recall probe: memory on beside memory off, a row of maps per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas.config.untrusted import printable

COLOURS = "cividis"  # of even lightness, and readable with any colour vision
DARK = 0.55  # cells below it are dark and get white numbers
CELL = (1.05, 0.48)  # inches

CellRecord = Mapping[str, Any]  # task, haystack, length, depth, span, accuracy, control, reason


def draw_heatmaps(cells: Sequence[CellRecord], title: str, path: Path) -> None:
    """Write a PNG. Cells without a measurement are grey, with a dash."""
    from matplotlib.figure import Figure  # not pyplot: a notebook that trains keeps its own backend

    tasks = list(dict.fromkeys((cell["task"], cell["haystack"]) for cell in cells))
    lengths = sorted({cell["length"] for cell in cells})
    rows_of = {task: depths_of(cells, task) for task in tasks}
    heights = [0.9 + CELL[1] * len(depths) for depths in rows_of.values()]
    size = 2 * (1.4 + CELL[0] * len(lengths)) + 1.2, sum(heights) + 1.2
    figure = Figure(layout="constrained", figsize=size)
    axes: Any = figure.subplots(len(tasks), 2, squeeze=False, height_ratios=heights)
    picture = None
    for row, task in enumerate(tasks):
        for column, (measure, name) in enumerate((("accuracy", "memory on"), ("control", "memory off"))):
            axis = axes[row][column]
            picture = _draw(axis, cells, task, measure, lengths, rows_of[task])
            axis.set_title(f"{task_name(*task)}: {name}", fontsize=9)
    if picture is not None:
        bar = figure.colorbar(picture, ax=axes, shrink=0.6, label="needles found, %", ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.set_ticklabels(["0", "25", "50", "75", "100"])
    figure.suptitle(printable(title), fontsize=10, parse_math=False)  # a folder may have any name
    figure.savefig(path, dpi=130)


def task_name(task: str, haystack: str) -> str:
    kind = "single" if task == haystack else task.removesuffix("_text").replace("_", " ")
    return "MQAR" if task == "mqar" else f"{kind} in {haystack}"


def depths_of(cells: Sequence[CellRecord], task: tuple[str, str]) -> list[float | None]:
    found = {cell["depth"] for cell in cells if (cell["task"], cell["haystack"]) == task}
    return sorted(found, key=lambda depth: -1 if depth is None else depth)


def _draw(
    axis: Any,
    cells: Sequence[CellRecord],
    task: tuple[str, str],
    measure: str,
    lengths: Sequence[int],
    depths: Sequence[float | None],
) -> Any:
    value_of = {
        (cell["depth"], cell["length"]): cell[measure] for cell in cells if (cell["task"], cell["haystack"]) == task
    }
    values = [[value_of.get((depth, length)) for length in lengths] for depth in depths]
    axis.set_facecolor("0.8")
    known = [[float("nan") if value is None else value for value in row] for row in values]
    picture = axis.imshow(known, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            text = "–" if value is None else f"{100 * value:.0f}"
            colour = "black" if value is None or value > DARK else "white"
            axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(lengths)), [str(length) for length in lengths], fontsize=8)
    axis.set_yticks(range(len(depths)), ["any" if d is None else f"{100 * d:g} %" for d in depths], fontsize=8)
    axis.set_xlabel("length, tokens", fontsize=8)
    axis.set_ylabel("depth of the needle", fontsize=8)
    return picture
