"""RESULTS.md: tables made from the measured files and from nothing else. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from experiments.speed.figures import (
    Ratio,
    Row,
    anchor,
    find,
    lengths,
    measured,
    quotient,
    speed_ratio,
    time_ratio,
    tokens_per_second,
)
from experiments.speed.names import label
from experiments.speed.targets import targets

HEAD = """# Speed: results

Written by `python -m experiments.speed`; do not edit. Every step is forward, backward and AdamW on random bytes; the
contestants of a table ran in one process, one step each in turn. Ratios are of medians; in brackets the lowest and the
highest of the rounds. What each table means: [README.md](README.md).
"""


def document(all_results: Sequence[dict[str, Any]]) -> str:
    sections = [_device(results) for results in all_results]
    return "\n".join([HEAD, *sections])


def _device(results: dict[str, Any]) -> str:
    device, model = results["device"], results["model"]
    parts = [f"## {device}, model {model}", "", f"![tokens per second](chart-{device}-{model}.svg)", ""]
    asked = [
        [t.what, f"{'>=' if t.at_least else '<='} {t.bound:g}", _cell(t.found), _cell(t.highest), t.verdict]
        for t in targets(results)
    ]
    parts += ["### Targets", "", table(["target", "wanted", "measured", "at the machine's peak", "verdict"], asked), ""]
    measured_parts = [part for part in SECTIONS if part in results]
    sources = {part: _source(results[part]["circumstances"]) for part in measured_parts}
    shared = len(set(sources.values())) == 1
    parts += [*sources.values()][:shared] + [""] * shared
    for part in measured_parts:
        title, write = SECTIONS[part]
        where = _moment(results[part]["circumstances"]) + ("" if shared else f"; {sources[part]}")
        parts += [f"### {title}", "", f"{where}.", "", write(results), ""]
    return "\n".join(parts)


def measured_tables(results: dict[str, Any], parts: Sequence[str]) -> str:
    return "\n\n".join(f"{SECTIONS[part][0]}\n\n{SECTIONS[part][1](results)}" for part in parts)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _source(at: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    return f"`{at['command']}`, revision {at['git'] or 'unknown'}; {at['machine']}; {packages}"


def _moment(at: dict[str, Any]) -> str:
    return f"Begun {at['date']}, load {at['load_before']:g} before and {at['load_after']:g} after"


def _whole(results: dict[str, Any]) -> str:
    part = results["whole"]
    plain = anchor(results, "whole")
    head = ["contestant", "parameters", "tokens/s", "of the Transformer", "peak memory", "of that, the model's"]
    head += ["GFLOP per step", "GFLOP/s", "of the peak", "products alone, of the step"]
    rows = [_speed_cells(row, plain) + _floor_cells(row, part["peak_flops"]) for row in part["rows"]]
    notes = [_shape_note(part["rows"], plain), f"Peak: {part['peak_flops'] / 1e9:.0f} GFLOP/s in one large product."]
    unknown = sorted({name for row in part["rows"] for name in row.get("not_counted", [])})
    if unknown:
        notes.append(f"Products inside {', '.join(unknown)} are not counted.")
    return table(head, rows) + "\n\n" + " ".join(notes) + _reasons(part["rows"])


def _titans(results: dict[str, Any]) -> str:
    rows, ours = results["titans"]["rows"], find(results, "titans", "gd_c16")
    head = ["contestant", "parameters", "tokens/s", "of atlas gd, c16", "peak memory", "of that, the model's"]
    body = [_speed_cells(row, ours) for row in rows]
    return table(head, body) + "\n\n" + _shape_note(rows, None) + _reasons(rows)


def _speed_cells(row: Row, other: Row | None) -> list[str]:
    if not measured(row):
        return [label(row["name"]), *["not measured"] * 5]
    own = row["peak_bytes"] - row["start_bytes"] if row.get("start_bytes") is not None else None
    return [
        label(row["name"]),
        f"{row['parameters'] / 1e6:.1f} M",
        _speed(row),
        _cell(speed_ratio(row, other)),
        _gigabytes(row.get("peak_bytes")),
        _gigabytes(own),
    ]


def _floor_cells(row: Row, peak: float) -> list[str]:
    if not measured(row):
        return ["not measured"] * 4
    seconds = median(row["seconds"])
    rate = row["flops"] / seconds
    return [
        f"{row['flops'] / 1e9:.3g}",
        f"{rate / 1e9:.0f}",
        f"{rate / peak:.0%}",
        f"{row['products_seconds'] / seconds:.0%}",
    ]


def _contexts(results: dict[str, Any]) -> str:
    return _by_length(results, "contexts", "transformer", "of the minimal Transformer")


def _branch(results: dict[str, Any]) -> str:
    return _by_length(results, "branch", "branch_c8_unsharded", "of c8 unsharded")


def _by_length(results: dict[str, Any], part: str, other: str, ratio_head: str) -> str:
    rows = results[part]["rows"]
    known = sorted({row["sequence"] for row in rows})
    body = []
    for name in dict.fromkeys(row["name"] for row in rows):
        cells: list[str] = [label(name)]
        for length in known:
            row = find(results, part, name, sequence=length)
            ratio = speed_ratio(row, find(results, part, other, sequence=length))
            cells += [_speed(row) if row else "not measured", _cell(ratio)]
        body.append(cells)
    head = ["contestant", *(cell for length in known for cell in (f"{length}: tokens/s", ratio_head))]
    tokens = {row["batch"] * row["sequence"] for row in rows}
    return table(head, body) + f"\n\n{', '.join(map(str, tokens))} tokens in every step." + _reasons(rows)


def _decode(results: dict[str, Any]) -> str:
    body = []
    for row in results["decode"]["rows"]:
        first = find(results, "decode", row["name"], context=lengths(results, "decode", "context")[0])
        body.append([
            label(row["name"]), row["context"], f"{median(row['seconds']) * 1000:.2f}", _cell(time_ratio(row, first)),
            f"{row['state_bytes'] / 1e6:.2f}", _cell(quotient(row, first, "state_bytes")),
            f"{row['prefilled_bytes'] / 1e6:.2f}",
        ])  # fmt: skip
    head = ["contestant", "tokens before", "ms per token", "of the shortest", "state, MB", "of the shortest"]
    return table([*head, "state after prefill, MB"], body) + "\n\nOne sequence."


def _shape_note(rows: Sequence[Row], plain: Row | None) -> str:
    note = f"{rows[0]['batch']} sequences of {rows[0]['sequence']} tokens." if rows else ""
    return note + (f" The Transformer is the faster one here: {label(plain['name'])}." if plain else "")


def _reasons(rows: Sequence[Row]) -> str:
    """Why something was not measured, a line each."""
    missing = [row for row in rows if not measured(row)]
    lines = [f"- {label(row['name'])}, {row['sequence']} tokens: not measured: {row['reason']}" for row in missing]
    return "".join(["\n\n", "\n".join(lines)] if lines else [])


def _speed(row: Row) -> str:
    return f"{tokens_per_second(row):,.0f}"


def _gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.2f} GB"


def _cell(found: Ratio | float | None) -> str:
    return "-" if found is None else str(found) if isinstance(found, Ratio) else f"{found:.2f}"


SECTIONS = {
    "whole": ("Whole models", _whole),
    "contexts": ("Over context lengths", _contexts),
    "branch": ("The memory branch of one block", _branch),
    "decode": ("Decoding", _decode),
    "titans": ("Beside titans-pytorch", _titans),
}
