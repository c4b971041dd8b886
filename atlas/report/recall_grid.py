"""The recall grid of `python -m atlas.niah`: depth x length, memory on beside its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atlas.config import LEVELS, RECALL, Unit
from atlas.config.untrusted import printable
from atlas.report.document import MISSING, Block, Cell, Chart, Picture, Table, Text
from atlas.report.heatmap import DARK, CellRecord, depths_of, task_name
from atlas.report.lines import UNDONE as BY_ROLLBACK
from atlas.report.run_record import UNDONE, RunRecord
from atlas.report.wording import finite, number_cell, share_cell
from atlas.telemetry.run_files import EARLIER, mappings

GRIDS = [level.name for level in LEVELS.values() if level.grid]
PLACE = ("task", "haystack", "length", "depth")
MEASURES = (("accuracy", "memory on"), ("control", "memory off"), ("without", "trained without a memory"))
GAP = 0.06  # between heat maps, of the width


def needle_blocks(record: RunRecord) -> list[Block]:
    """Verdicts, heat maps and the grid as tables; [] for a run that `python -m atlas.niah` did not probe.

    Of the newest probing, and of the newest one before it with a grid where it has none; of the others the verdicts.
    """
    blocks: list[Block] = []
    others: list[list[Cell]] = []
    drawn = False
    for probing in [record.niah, *mappings(record.niah.get(EARLIER))]:
        results = mappings(probing.get("results"))
        cells = [cell for result in results if result.get("level") in GRIDS for cell in _sound_cells(result)]
        if not results:
            continue
        if blocks and (drawn or not cells):
            others += [[*row, Cell(_source(probing))] for row in _verdicts(results)]
            continue
        blocks.append(Table("Probe of the checkpoint", ("level", "verdict"), _verdicts(results), note=_source(probing)))
        picture = record.folder / "niah.png"  # of the newest grid
        if cells and picture.is_file():
            name = printable(record.name)
            blocks.append(Picture(picture, f"niah-{name.replace('/', '-')}.png", f"needles found, {name}"))
        blocks += [_heatmap(cells, task) for task in dict.fromkeys((c["task"], c["haystack"]) for c in cells)]
        drawn |= bool(cells)
    return [*blocks, *([Table("Earlier probes", ("level", "verdict", "command"), others)] if others else [])]


def _source(probing: Mapping[str, Any]) -> str:
    lasting = f" with lasting={rate}" if (rate := finite(probing.get("lasting"))) else ""
    settings = probing.get("settings")
    samples = settings.get("samples") if isinstance(settings, dict) else None
    needles = f", niah.samples={samples}" if isinstance(samples, int) else ""
    control = probing.get("control")
    beside = f", control={', '.join(map(str, control))}" if control and isinstance(control, list) else ""
    return f"python -m atlas.niah{lasting} on {probing.get('checkpoint', 'a checkpoint')}{needles}{beside}"


def _sound_cells(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells with a valid length and depth; a share that is not a number counts as not measured."""
    return [
        {**{key: cell.get(key) for key in PLACE}, **{measure: finite(cell.get(measure)) for measure, _ in MEASURES}}
        for cell in mappings(result.get("cells"))
        if isinstance(cell.get("task"), str)
        and isinstance(cell.get("haystack"), str)
        and type(cell.get("length")) is int
        and (cell.get("depth") is None or finite(cell["depth"]) is not None)
    ]


def _verdicts(results: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    return [
        [Cell(str(result.get("level"))), Cell(str(result.get("verdict")), tone=_tone(result))] for result in results
    ]


def _tone(result: Mapping[str, Any]) -> str:
    return {"passed": "good", "failed": "bad"}.get(str(result.get("outcome")), "")


def _measures(cells: Sequence[CellRecord]) -> list[tuple[str, str]]:
    """Those of every probe, and that of a control that was given."""
    return [one for one in MEASURES if one[0] != "without" or any(cell["without"] is not None for cell in cells)]


def _axes(cells: Sequence[CellRecord], task: tuple[str, str]) -> tuple[list[int], list[float | None]]:
    lengths = sorted({cell["length"] for cell in cells if (cell["task"], cell["haystack"]) == task})
    return lengths, depths_of(cells, task)


def _values(cells: Sequence[CellRecord], task: tuple[str, str], measure: str) -> list[list[float | None]]:
    """A row per depth, a column per length."""
    found = {(c["depth"], c["length"]): c.get(measure) for c in cells if (c["task"], c["haystack"]) == task}
    lengths, depths = _axes(cells, task)
    return [[found.get((depth, length)) for length in lengths] for depth in depths]


def _depth(depth: float | None) -> str:
    return "any" if depth is None else f"{depth:.0%}"


def _heatmap(cells: Sequence[CellRecord], task: tuple[str, str]) -> Chart:
    lengths, depths = _axes(cells, task)
    layout: dict[str, Any] = {"annotations": [], "showlegend": False, "hovermode": "closest", "plot_bgcolor": "@grid"}
    traces, measures = [], _measures(cells)
    width = (1 + GAP) / len(measures) - GAP
    for index, (measure, name) in enumerate(measures):
        suffix = "" if index == 0 else str(index + 1)
        values = _values(cells, task, measure)
        traces.append(_map(values, lengths, depths, suffix))
        start = (width + GAP) * index
        layout |= {f"xaxis{suffix}": _axis("length, tokens", domain=[start, min(start + width, 1.0)])}
        layout |= {f"yaxis{suffix}": _axis("depth" if index == 0 else "", autorange="reversed")}
        layout[f"yaxis{suffix}"] |= {"anchor": f"x{suffix}", "showticklabels": index == 0}
        layout["annotations"] += [_heading(name, start + width / 2), *_numbers(values, suffix)]
    title, note = f"Needles found: {task_name(*task)}", "Share of needles found, in percent."
    return Chart(title, traces, layout, note, table=_grid(title, cells, task))


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"type": "category", "title": {"text": title}, "showgrid": False, "zeroline": False, **more}


def _map(
    values: list[list[float | None]], lengths: Sequence[int], depths: Sequence[float | None], suffix: str
) -> dict[str, Any]:
    return {
        "type": "heatmap", "z": values, "x": [str(length) for length in lengths], "y": [_depth(d) for d in depths],
        "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "zmin": 0, "zmax": 1, "colorscale": "Cividis",
        "showscale": False, "xgap": 2, "ygap": 2,
        "hovertemplate": "length %{x}, depth %{y}: %{z:.1%}<extra></extra>",
    }  # fmt: skip


def _heading(name: str, x: float) -> dict[str, Any]:
    place = {"xref": "paper", "yref": "paper", "x": x, "y": 1, "xanchor": "center", "yanchor": "bottom"}
    return {**place, "text": name, "showarrow": False}


def _numbers(values: list[list[float | None]], suffix: str) -> list[dict[str, Any]]:
    """The share written into each cell, dark on light and light on dark; a dash where nothing was measured."""
    return [
        {
            "x": column, "y": line, "xref": f"x{suffix}", "yref": f"y{suffix}", "showarrow": False,
            "text": MISSING if value is None else f"{100 * value:.0f}",
            "font": {"color": "@text" if value is None else "#000" if value > DARK else "#fff"},
        }
        for line, row in enumerate(values)
        for column, value in enumerate(row)
    ]  # fmt: skip


def _grid(title: str, cells: Sequence[CellRecord], task: tuple[str, str]) -> Table:
    lengths, depths = _axes(cells, task)
    measures = _measures(cells)
    found = [_values(cells, task, measure) for measure, _ in measures]
    head = ["depth", *(f"{length} tokens, {name}" for _, name in measures for length in lengths)]
    rows = [
        [Cell(_depth(depth)), *(share_cell(value) for values in found for value in values[index])]
        for index, depth in enumerate(depths)
    ]
    return Table(title, head, rows)


def probe_history(record: RunRecord) -> Table | Text:
    """What the probes during training found."""
    probes = record.kind("probe")
    if not probes:
        return Text(
            "NIAH was not measured yet." if record.status == "running" else "NIAH was not measured during this run."
        )
    head: tuple[str, ...] = ("step", "level", "outcome", "found", "memory off", "key-blind", "wanted", "")
    rows = [
        [
            number_cell(event["step"], ",.0f"),
            Cell(str(event.get("level"))),
            Cell(str(event.get("outcome", MISSING)).replace("_", " "), tone=_tone(event)),
            *(number_cell(event.get(key), ".3f") for key in ("accuracy", "control", "key_blind", "threshold")),
            Cell(BY_ROLLBACK if event.get(UNDONE) else ""),
        ]
        for event in probes
    ]
    if not any(event.get(UNDONE) for event in probes):
        head, rows = head[:-1], [row[:-1] for row in rows]
    of_unit = {unit: " and ".join(level.name for level in LEVELS.values() if level.unit is unit) for unit in Unit}
    note = f"Found: {', '.join(f'{unit.meaning} for {names}' for unit, names in of_unit.items())}."
    note += " Key-blind: the best reader that ignores the key."
    note += f" {of_unit[Unit.cosine].capitalize()} test the mechanism: only {RECALL.name} shows what was learned."
    return Table("NIAH during training", head, rows, note, sortable=True)
