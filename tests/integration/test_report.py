"""The report of real runs, and its page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import atlas
from atlas.report import write_report
from atlas.report.browser import Browser, find_browser

needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")
HOSTILE = "<script>document.title='taken'</script>"


@pytest.mark.slow
def test_a_run_that_rolled_back_is_told_in_full(tiny: Any, tmp_path: Path) -> None:
    run = Path(atlas.train(tiny("debug.inject=nan_loss@18"), tmp_path / "run").folder)
    text = (write_report([run]) / "report.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert "- segments: 1 rollback, now in segment 1\n" in text
    assert f"- validation loss: {summary['validation_loss']:.4f} nats" in text
    assert "| rollback | back from step 17 to 10: loss nan, gradient norm nan at step 18; 8 batches left out" in text
    assert "Without 3 rows that a rollback undid." in text  # of steps 15, 17 and 18
    assert "| gate/mean |" in text


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three runs with few rows, the last of which failed with a hostile setting."""
    sweep = tmp_path_factory.mktemp("report") / "sweep"
    for number, loss in enumerate((2.5, 10.0, None)):
        folder = sweep / str(number)
        folder.mkdir(parents=True)
        setting = json.dumps(HOSTILE if loss is None else "text")
        (folder / "config.yaml").write_text(f"{{optim: {{lr: {0.1 * number}}}, data: {setting}}}")
        status = {"status": "failed", "reason": HOSTILE} if loss is None else {"status": "completed"}
        (folder / "summary.json").write_text(json.dumps({**status, "validation_loss": loss}))
        rows = [{"step": step, "segment": 0, "loss": 3.0 - 0.1 * step, HOSTILE: 1.0} for step in range(1, 6)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "events.jsonl").write_text("")
    return write_report([sweep]) / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(1280, 900) as found:
        yield found


@needs_browser
@pytest.mark.slow
def test_the_page_draws_every_chart_without_errors_or_network(page: Path, browser: Browser) -> None:
    browser.open(page, "?all")
    browser.wait("document.querySelectorAll('.plot').length === Number(document.documentElement.dataset.drawn)")
    assert browser.run("document.querySelectorAll('.plot .main-svg').length") >= 8
    assert (browser.errors, browser.run("document.documentElement.dataset.errors ?? ''")) == ([], "")
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert browser.run("document.title") == "sweep sweep - atlas"


@needs_browser
@pytest.mark.slow
def test_a_click_on_a_heading_sorts_by_number_with_missing_ones_last(page: Path, browser: Browser) -> None:
    browser.open(page)
    losses = (
        "(() => { const heads = [...document.querySelectorAll('#comparison .sortable th')];"
        " const at = heads.findIndex(head => head.textContent === 'validation loss');"
        " %s; return [...document.querySelectorAll('#comparison .sortable tbody tr')]"
        ".map(row => row.children[at].textContent); })()"
    )
    click = "heads[at].firstChild.click()"
    assert browser.run(losses % "") == ["2.5000", "10.0000", "-"]
    assert browser.run(losses % f"{click}; {click}") == ["10.0000", "2.5000", "-"]
    assert browser.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    assert browser.run(losses % click) == ["2.5000", "10.0000", "-"]


@needs_browser
@pytest.mark.slow
def test_the_charts_follow_the_theme_and_the_page_fits_a_phone(page: Path, browser: Browser) -> None:
    colour = "document.querySelector('#comparison .plot .xtick text').style.fill"
    browser.open(page)
    browser.wait(f"!!({colour.removesuffix('.style.fill')})")
    light = browser.run(colour)
    browser.set_dark(True)
    browser.wait(f"{colour} !== {json.dumps(light)}")
    browser.set_dark(False)
    browser.resize(360, 740, mobile=True)
    browser.open(page, "?all")
    assert browser.run("document.documentElement.scrollWidth") <= 360
    browser.resize(1280, 900)


@needs_browser
@pytest.mark.slow
def test_a_link_of_the_table_opens_its_run(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.run("document.querySelector('#comparison tbody a').click()")
    browser.wait("document.querySelector('#run-0 details').open")
    browser.run("document.querySelector('#run-0 .plot').scrollIntoView()")
    browser.wait("document.querySelector('#run-0 .plot').classList.contains('js-plotly-plot')")


@needs_browser
@pytest.mark.slow
def test_a_missing_script_is_told_and_the_tables_stay(page: Path, browser: Browser) -> None:
    script = page.with_name("plotly.min.js")
    script.rename(script.with_suffix(".away"))
    try:
        browser.open(page)
        told = browser.run("document.documentElement.dataset.errors")
        assert told.startswith("a file could not be loaded: file://")
        assert browser.run("document.querySelectorAll('#comparison tbody tr').length") == 4
    finally:
        script.with_suffix(".away").rename(script)
