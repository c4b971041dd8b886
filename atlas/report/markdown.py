"""A report as Markdown: tables where the page has charts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from atlas.config.untrusted import printable
from atlas.report.document import Block, Chooser, Document, Facts, Markdown, Picture, Table, Text


def to_markdown(document: Document) -> str:
    parts = [f"# {_inline(document.title)}", _inline(document.lead), *map(_inline, document.notes)]
    for section in document.sections:
        said = [text for block in section.blocks for text in _block(block)]
        parts += [f"## {_inline(section.title)}", *said] if said else []  # charts alone say nothing here
    return printable("\n\n".join(parts) + "\n")


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield _inline(block.text)
    elif isinstance(block, Markdown):
        yield _demoted(block.source)
    elif isinstance(block, Picture):
        yield f"![{_inline(block.title)}]({quote(block.file)})"
    elif isinstance(block, Facts):
        yield "\n".join(f"- {_inline(name)}: {_inline(cell.text)}" for name, cell in block.pairs)
    elif isinstance(block, Table):
        yield from _table(block)
    elif not isinstance(block, Chooser) and block.table is not None:
        yield from _table(block.table)


def _table(table: Table) -> Iterator[str]:
    yield f"### {_inline(table.title)}"
    numeric = [any(row[column].numeric for row in table.rows) for column in range(len(table.head))]
    lines = [table.head, ["--:" if right else "---" for right in numeric]]
    lines += [[cell.text for cell in row] for row in table.rows]
    yield "\n".join("| " + " | ".join(_inline(text) for text in line) + " |" for line in lines)
    if table.note:
        yield _inline(table.note)


def _inline(text: str) -> str:
    """Text of a file, escaped: its markup has no effect, and its line breaks do not end a row of the table."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return _without_links("".join(f"\\{letter}" if letter in "|`*\\" else letter for letter in flat))


def _without_links(text: str) -> str:
    """The text with a backslash that breaks every link and every link definition."""
    return re.sub(r"\](?=[(\[:])", r"]\\", text)


def _demoted(source: str) -> str:
    """Headings two levels lower, so that they stay below the section's; neither links nor HTML."""
    lines = re.sub("<(?=[a-zA-Z/!?])", "&lt;", _without_links(source)).strip().splitlines()
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in lines)
