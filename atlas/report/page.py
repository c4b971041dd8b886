"""A report as one HTML page that needs no network; charts are drawn when they come into view."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from markdown_it import MarkdownIt

from atlas.config.untrusted import printable
from atlas.report.document import Block, Cell, Chart, Chooser, Document, Facts, Markdown, Section, Table, Text

SCRIPT = "plotly.min.js"  # beside the page, see `writing`
_ASSETS = files("atlas.report") / "assets"


def to_page(document: Document, *, inline: str = "", refresh_seconds: int = 0) -> str:
    """`inline`: the script, for a page that needs no other file. `refresh_seconds`: it loads itself anew so often."""
    asset = {name: (_ASSETS / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    return Template(asset["page.html"]).substitute(
        title=printable(escape(document.title)),
        lead=printable(escape(document.lead)),
        style=asset["page.css"],
        behaviour=asset["page.js"],
        plotly=f"<script>{inline}</script>" if inline else f'<script defer src="{SCRIPT}"></script>',
        refresh=f' data-refresh="{refresh_seconds}"' if refresh_seconds else "",
        contents=printable(_contents(document)),
        sections=printable("\n".join(_section(section) for section in document.sections)),
        notes=printable("\n".join(f"<p>{escape(note)}</p>" for note in document.notes)),
    )


def _contents(document: Document) -> str:
    """Links to the sections; a list of one would say nothing."""
    if len(document.sections) < 2:
        return ""
    links = (f'<li><a href="#{escape(s.anchor)}">{escape(s.title)}</a></li>' for s in document.sections)
    return f'<nav aria-label="Sections"><details><summary>Sections</summary><ul>{"".join(links)}</ul></details></nav>'


def _section(section: Section) -> str:
    body = "\n".join(_blocks(section))
    anchor, title = escape(section.anchor), escape(section.title)
    if section.folded:
        summary = f"<summary><h2>{title}</h2></summary>"
        return f'<section id="{anchor}"><details class="fold">{summary}{body}</details></section>'
    return f'<section id="{anchor}"><h2>{title}</h2>{body}</section>'


def _blocks(section: Section) -> Iterator[str]:
    """The section's blocks; charts that follow each other share a grid."""
    open_grid = False
    for number, block in enumerate(section.blocks):
        if isinstance(block, Chart) is not open_grid:
            open_grid = not open_grid
            yield '<div class="charts">' if open_grid else "</div>"
        yield _block(block, f"{section.anchor}-{number}")
    if open_grid:
        yield "</div>"


def _block(block: Block, name: str) -> str:
    if isinstance(block, Chart):
        return _chart(block, escape(name))
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Chooser):
        return _chooser(block)
    if isinstance(block, Facts):
        facts = [
            f"<div><dt>{escape(name)}</dt><dd{_class(cell.tone)}>{escape(cell.text)}</dd></div>"
            for name, cell in block.pairs
        ]
        return f'<dl class="facts">{"".join(facts)}</dl>'
    if isinstance(block, Text):
        return f'<p class="{escape(block.tone) or "plain"}">{escape(block.text)}</p>'
    if isinstance(block, Markdown):
        return f'<div class="document">{_render(block.source)}</div>'
    return ""  # a picture: the page has the chart


def _render(source: str) -> str:
    """The text's Markdown as HTML, without HTML of its own and without images."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    return str(reader.render(source))


def _chart(chart: Chart, name: str) -> str:
    classes = "chart wide" if chart.wide else "chart"
    note = f"<p>{escape(chart.note)}</p>" if chart.note else ""
    return (
        f'<figure class="{classes}"><figcaption><h3>{escape(chart.title)}</h3>{note}</figcaption>'
        f'<div class="plot" id="{name}" role="img" aria-label="{escape(chart.title)}"></div>'
        f'<script type="application/json">{_data({"data": chart.traces, "layout": chart.layout})}</script></figure>'
    )


def _chooser(chooser: Chooser) -> str:
    """A box for each run, with the colour of its lines."""
    boxes = "".join(
        f'<label><input type="checkbox" checked value="{number}"><i data-colour="{escape(colour)}"></i>'
        f"<span>{escape(label)}</span></label>"
        for number, (label, colour) in enumerate(chooser.runs)
    )
    return f'<fieldset class="runs"><legend>Runs in the charts</legend>{boxes}</fieldset>'


def _data(value: Any) -> str:
    """JSON that cannot end the element that holds it."""
    text = json.dumps(_shown(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(value: Any) -> Any:
    """The figure with printable texts only: JSON would carry control characters past the page's own check."""
    if isinstance(value, Mapping):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def _table(table: Table) -> str:
    numeric = [any(row[column].numeric for row in table.rows) for column in range(len(table.head))]
    title = f"<h3>{escape(table.title)}</h3>"
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    head = "".join(_head(text, right, table.sortable) for text, right in zip(table.head, numeric, strict=True))
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    kind = "sortable" if table.sortable else "fixed"
    return (
        f'{title}<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'
    )


def _head(text: str, right: bool, sortable: bool) -> str:
    shown = f'<button type="button">{escape(text)}</button>' if sortable else escape(text)
    return f'<th scope="col"{_class("number" if right else "")}>{shown}</th>'


def _cell(cell: Cell) -> str:
    classes = " ".join(filter(None, ["number" if cell.numeric else "", "code" if cell.code else "", cell.tone]))
    order = "" if cell.order is None else f' data-order="{cell.order!r}"'
    shown = escape(cell.text.expandtabs(4) if cell.code else cell.text)
    text = f'<a href="#{escape(cell.link)}">{shown}</a>' if cell.link else shown
    return f"<td{_class(classes)}{order}>{text}</td>"


def _class(names: str) -> str:
    return f' class="{escape(names)}"' if names else ""
