"""The content of a report, from which page and Markdown are made: sections of tables, charts and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MISSING = "-"  # a number that was not measured; never 0


@dataclass(frozen=True)
class Cell:
    """A table's cell. `order` is what its column is sorted by: a number, else the text; None comes last."""

    text: str
    order: float | None = None
    numeric: bool = False
    tone: str = ""  # good, bad or busy: a colour beside what the text says
    link: str = ""  # anchor on the page
    code: bool = False  # text with its own line breaks and spaces


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    sortable: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure as plotly reads it. Colours are names such as `@blue`; the page replaces them for its theme.

    `table` says the same where there are no charts.
    """

    title: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    note: str = ""
    wide: bool = False
    table: Table | None = None


@dataclass(frozen=True)
class Text:
    """One paragraph. `tone` as in `Cell`."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Markdown:
    """Text that another command wrote, such as a decision."""

    source: str


@dataclass(frozen=True)
class Picture:
    """An image, copied from `source` to `file` beside the report: shown in Markdown, where the page has a chart."""

    source: Path
    file: str
    title: str


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    pairs: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Chooser:
    """The legend of all charts below it that show several runs; the page hides the runs that are switched off.

    `runs`: label and colour; the number of a run is the `legendgroup` of its traces.
    """

    runs: Sequence[tuple[str, str]]


Block = Facts | Table | Chart | Text | Markdown | Picture | Chooser


@dataclass(frozen=True)
class Section:
    title: str
    anchor: str
    blocks: Sequence[Block]
    folded: bool = False  # closed until it is asked for


@dataclass(frozen=True)
class Document:
    title: str
    lead: str
    sections: Sequence[Section]
    notes: Sequence[str] = field(default_factory=tuple)
