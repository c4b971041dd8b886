from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from atlas.report.document import Cell, Chart, Document, Facts, Markdown, Section, Table, Text
from atlas.report.markdown import to_markdown
from atlas.report.page import to_page

HOSTILE = "</script><script>alert('x')</script><img src=http://x.test/y onerror=alert(1)>"
EVERYWHERE = Document(
    HOSTILE,
    HOSTILE,
    [
        Section(
            HOSTILE,
            "first",
            [
                Text(HOSTILE),
                Facts([(HOSTILE, Cell(HOSTILE))]),
                Table(HOSTILE, (HOSTILE,), [[Cell(HOSTILE)]], HOSTILE, sortable=True),
                Chart(HOSTILE, [{"name": HOSTILE, "y": [1]}], {"title": HOSTILE}, HOSTILE),
                Markdown(f"# {HOSTILE}\n\n![picture](http://x.test/z)\n\n[link](javascript:alert(1))\n"),
            ],
        ),
        Section("second", "second", [], folded=True),
    ],
    [HOSTILE],
)


class Sources(HTMLParser):
    """What a page loads by itself; a link is followed only if it is clicked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == "src" or (tag == "link" and name == "href")]


def test_markup_from_files_never_takes_effect_on_the_page() -> None:
    page = to_page(EVERYWHERE)
    assert "<img" not in page
    assert "alert('x')</script>" not in page
    assert 'href="javascript' not in page
    assert len(re.findall("<script", page)) == 4  # errors, plotly, the chart's figure, behaviour


STEERING = "a\x1b[2J\x07b\x9bc\u202ed\ud800e\rf\x00"
SHOWN = "a\ufffd[2J\ufffdb\ufffdc\ufffdd\ufffde"


def test_control_characters_and_terminal_escapes_are_shown_as_such() -> None:
    blocks = [
        Text(STEERING),
        Facts([(STEERING, Cell(STEERING))]),
        Table(STEERING, (STEERING,), [[Cell(STEERING)]], STEERING),
        Chart(STEERING, [{"name": STEERING, "y": [1.5]}], {"title": {"text": [STEERING]}}, STEERING),
        Markdown(f"# {STEERING}"),
    ]
    document = Document(STEERING, STEERING, [Section(STEERING, "first", blocks)], [STEERING])
    page, text = to_page(document), to_markdown(document)
    assert {letter for letter in page + text if not letter.isprintable()} == {"\n"}
    assert not re.search(r"\\u(00[01]|007f|009|d8|202)", page)  # in the data of a figure
    assert (page.count(SHOWN), text.count(SHOWN)) == (17, 12)


LINKS = ["[x](javascript:alert(1))", "[x]: javascript:alert(1)", "[x][y]", "![x](data:text/html,x)", "<javascript:x>"]


@pytest.mark.parametrize("link", LINKS)
def test_no_link_of_a_file_s_text_is_one_in_markdown(link: str) -> None:
    blocks = [Text(link), Table("t", (link,), [[Cell(link)]]), Markdown(f"{link}\n\n[y]: javascript:alert(2)\n")]
    text = to_markdown(Document(link, link, [Section(link, "first", blocks)], [link]))
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table")
    rendered.validateLink = lambda _: True  # a reader that lets everything through
    assert not re.search(r"<(a|img|javascript)\b", str(rendered.render(text)))


def test_the_page_asks_for_nothing_but_its_own_script() -> None:
    sources = Sources()
    sources.feed(to_page(EVERYWHERE))
    assert sources.found == ["data:,", "plotly.min.js"]


def test_a_figure_comes_back_as_it_was() -> None:
    figure = re.search(r'<script type="application/json">(.*?)</script>', to_page(EVERYWHERE))
    assert figure is not None
    assert json.loads(figure[1]) == {"data": [{"name": HOSTILE, "y": [1]}], "layout": {"title": HOSTILE}}


def test_numbers_are_sorted_as_numbers_and_missing_ones_known() -> None:
    column = [[Cell("1,000", order=1000.0, numeric=True)], [Cell("-", numeric=True)]]
    page = to_page(Document("", "", [Section("", "a", [Table("t", ("n",), column, sortable=True)])]))
    assert '<td class="number" data-order="1000.0">1,000</td>' in page
    assert '<td class="number">-</td>' in page


def test_markdown_keeps_a_row_a_row() -> None:
    table = Table("t", ("a", "n"), [[Cell("x | y\n`<b>`"), Cell("1", 1.0, numeric=True)]], "note")
    text = to_markdown(Document("title", "lead", [Section("part", "p", [table, Markdown("# head\ntext")])]))
    assert text == (
        "# title\n\nlead\n\n## part\n\n### t\n\n"
        "| a | n |\n| --- | --: |\n| x \\| y \\`&lt;b>\\` | 1 |\n\nnote\n\n### head\ntext\n"
    )
