"""Two panels: tokens per second of every whole model, and over context lengths. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.speed.figures import Row, anchor, find, lengths, measured, tokens_per_second
from experiments.speed.names import MODELS, label

# Okabe and Ito's palette: told apart with every kind of colour vision; markers tell the lines apart as well.
COLOURS = {
    "gd": "#0072B2",
    "momentum": "#E69F00",
    "muon": "#009E73",
    "omega": "#CC79A7",
    "atlas": "#56B4E9",
    "other": "#555555",
}
MARKERS = "osD^v<>"
BAR_INCHES = 0.24


def draw(results: dict[str, Any], path: Path) -> None:
    """Write an SVG; the same figures give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in results.get("whole", {}).get("rows", []) if measured(row)]
    with matplotlib.rc_context({"svg.hashsalt": "atlas", "font.size": 8}):
        size = (11, max(3.2, 1.0 + BAR_INCHES * len(rows)))
        figure, (bars, lines) = plt.subplots(1, 2, figsize=size, layout="constrained")
        _bars(bars, rows, anchor(results, "whole"))
        _lines(lines, results)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _bars(axis: Any, rows: list[Row], plain: Row | None) -> None:
    speeds = [tokens_per_second(row) for row in rows]
    colours = [_colour(row["name"]) for row in rows]
    axis.barh([label(row["name"]) for row in rows], speeds, color=colours)
    axis.invert_yaxis()
    axis.set_xlabel("tokens per second")
    axis.set_title("Whole models")
    if plain is None:
        return
    for share, style in ((1.0, "-"), (0.5, "--"), (0.25, ":")):
        name = f"{share:g} x the plain Transformer"
        axis.axvline(share * tokens_per_second(plain), color="black", linewidth=0.8, linestyle=style, label=name)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, fontsize="small")


def _lines(axis: Any, results: dict[str, Any]) -> None:
    known = lengths(results, "contexts", "sequence")
    names = dict.fromkeys(row["name"] for row in results.get("contexts", {}).get("rows", []))
    for number, name in enumerate(names):
        found = [find(results, "contexts", name, sequence=length) for length in known]
        points = [(row["sequence"], tokens_per_second(row)) for row in found if row is not None]
        marker = MARKERS[number % len(MARKERS)]
        axis.plot(*zip(*points, strict=True), marker=marker, color=_colour(name), label=label(name)) if points else None
    axis.set_xlabel("tokens of context; as many tokens in every step")
    axis.set_ylabel("tokens per second")
    axis.set_title("Over context lengths")
    if known:
        axis.set_xscale("log", base=2)
        axis.set_xticks(known, [f"{length:,}" for length in known])
        axis.set_ylim(bottom=0)
        axis.legend()


def _colour(name: str) -> str:
    return COLOURS[MODELS[name].rule if name in MODELS else "other"]
