"""The report of real runs, and its page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atlas
from atlas.report import write_report
from atlas.report.__main__ import main
from experiments.browser import BrowserMissingError, open_file, opened_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

HOSTILE = "<script>document.title='taken'</script>"


@pytest.mark.slow
def test_a_run_that_rolled_back_is_told_in_full(tiny: Any, tmp_path: Path) -> None:
    run = Path(atlas.train(tiny("debug.inject=nan_loss@18"), tmp_path / "run").folder)
    text = (write_report([run]) / "report.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert "- segments: 1 rollback, now in segment 1\n" in text
    assert f"- validation loss: {summary['validation_loss']:.4f} nats per byte, perplexity" in text
    assert "| rollback | back from step 17 to 10: loss nan, gradient norm nan at step 18; 8 batches left out" in text
    assert "Without 3 rows that a rollback undid." in text  # of steps 15, 17 and 18
    assert "| gate/mean |" in text


@pytest.mark.slow
def test_runs_on_other_texts_are_not_compared(
    tiny: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_bytes(text.read_bytes()[::-1])
    settings = {"a": (), "b": ("seed=1",), "c": (f"data.paths=[{other}]",), "d": ("train.sequence=32",)}
    runs = [atlas.train(tiny("train.steps=2", *more), tmp_path / name) for name, more in settings.items()]
    digests = [run.validation_digest for run in runs]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3  # shorter rows of one text are other rows
    capsys.readouterr()
    assert main([*(str(tmp_path / name) for name in settings), f"target={tmp_path / 'report'}"]) == 0
    warning = "Not all runs can be compared, since their validation losses are of different texts or targets. "
    names = f"A: a, b, d (…{str(text)[-39:]}); B: c (…{str(other)[-39:]}).\n"
    assert warning + names in capsys.readouterr().out


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
    try:
        with opened_browser() as found:
            yield found
    except BrowserMissingError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_page_draws_every_chart_without_errors_or_network(page: Path, browser: Browser) -> None:
    tab = browser.new_page()
    errors: list[str] = []
    requests: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: requests.append(request.url))
    open_file(tab, page, "?all")
    tab.wait_for_function(
        "document.querySelectorAll('.plot').length === Number(document.documentElement.dataset.drawn)"
    )
    assert tab.locator(".plot .main-svg").count() >= 8
    assert (errors, tab.evaluate("document.documentElement.dataset.errors ?? ''")) == ([], "")
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert tab.title() == "sweep sweep - atlas"


@pytest.mark.slow
def test_a_click_on_a_heading_sorts_by_number_with_missing_ones_last(page: Path, browser: Browser) -> None:
    tab = browser.new_page()
    open_file(tab, page)
    heads = tab.locator("#comparison .sortable th")
    at = heads.all_text_contents().index("validation nats/byte")
    losses = tab.locator(f"#comparison .sortable tbody tr > :nth-child({at + 1})")
    button = heads.nth(at).locator(":scope > :first-child")
    assert losses.all_text_contents() == ["2.5000", "10.0000", "-"]
    button.click()
    button.click()
    assert losses.all_text_contents() == ["10.0000", "2.5000", "-"]
    assert tab.locator("[aria-sort]").first.get_attribute("aria-sort") == "descending"
    button.click()
    assert losses.all_text_contents() == ["2.5000", "10.0000", "-"]


@pytest.mark.slow
def test_the_charts_follow_the_theme(page: Path, browser: Browser) -> None:
    tab = browser.new_page()
    open_file(tab, page)
    tab.wait_for_selector("#comparison .plot .xtick text")
    colour = "document.querySelector('#comparison .plot .xtick text').style.fill"
    light = tab.evaluate(colour)
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function(f"{colour} !== {json.dumps(light)}")


@pytest.mark.slow
def test_the_page_fits_a_phone(page: Path, browser: Browser) -> None:
    size = {"width": 360, "height": 740}
    tab = browser.new_page(viewport=size, device_scale_factor=2, is_mobile=True, has_touch=True)  # type: ignore[arg-type]
    open_file(tab, page, "?all")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_a_link_of_the_table_opens_its_run(page: Path, browser: Browser) -> None:
    tab = browser.new_page()
    open_file(tab, page)
    tab.locator("#comparison tbody a").first.click()
    tab.wait_for_function("document.querySelector('#run-0 details').open")
    tab.locator("#run-0 .plot").first.scroll_into_view_if_needed()
    tab.wait_for_function("document.querySelector('#run-0 .plot').classList.contains('js-plotly-plot')")


@pytest.mark.slow
def test_a_missing_script_is_told_and_the_tables_stay(page: Path, browser: Browser) -> None:
    script = page.with_name("plotly.min.js")
    script.rename(script.with_suffix(".away"))
    try:
        tab = browser.new_page()
        open_file(tab, page)
        message = tab.evaluate("document.documentElement.dataset.errors")
        assert message.startswith("a file could not be loaded: file://")
        assert tab.locator("#comparison tbody tr").count() == 4
    finally:
        script.with_suffix(".away").rename(script)


def chart(tab: Page, title: str) -> Locator:
    """The drawn chart of that title."""
    figure = tab.locator(f"figure:has(h3:text-is('{title}'))").first
    figure.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for()
    return figure


@pytest.mark.slow
def test_runs_are_chosen_smoothed_and_shown_on_a_logarithmic_axis(page: Path, browser: Browser) -> None:
    tab = browser.new_page()
    open_file(tab, page)
    figure = chart(tab, "Training loss of all runs")
    lines = figure.locator(".scatterlayer .js-line")
    assert lines.count() == 3
    tab.locator(".runs input").first.uncheck()
    assert lines.count() == 2
    tab.locator("#smoothing").fill("0.5")
    assert lines.count() == 4  # each faintly as it is, and its mean
    figure.locator("button:text-is('log')").click()
    axis = "plot => [plot.layout.yaxis.type, plot.data[1].y[1]]"
    kind, mean = figure.locator(".plot").evaluate(axis)
    assert (kind, mean) == ("log", pytest.approx((0.5 * 0.5 * 2.9 + 0.5 * 2.8) / 0.75))
    tab.reload()  # as a page does that follows a run
    figure = chart(tab, "Training loss of all runs")
    assert figure.locator(".plot").evaluate(axis)[0] == "log"
    assert (lines.count(), tab.locator(".runs input").first.is_checked()) == (4, False)


@pytest.mark.slow
def test_any_series_of_the_runs_is_a_chart_of_all_of_them(page: Path, browser: Browser) -> None:
    tab = browser.new_page()
    open_file(tab, page)
    series = tab.locator(".runs select")
    series.focus()
    assert series.locator("option").all_text_contents() == ["none", "Loss, nats per byte", HOSTILE.capitalize()]
    series.select_option("Loss, nats per byte")
    names = "plot => plot.data.map(trace => trace.name)"
    found = chart(tab, "Loss, nats per byte, all runs").locator(".plot").evaluate(names)
    assert found[:2] == ["0 lr=0 data=text", "1 lr=0.1 data=text"]
    assert found[2].startswith("2 lr=0.2 data=&lt;script&gt;")
    assert tab.title() == "sweep sweep - atlas"
    tab.reload()
    assert len(chart(tab, "Loss, nats per byte, all runs").locator(".plot").evaluate(names)) == 3
    tab.locator(".runs select").select_option("none")
    assert tab.locator("figure:has(h3:text-is('Loss, nats per byte, all runs'))").count() == 0


@pytest.mark.slow
def test_a_series_of_all_runs_has_the_one_that_was_rolled_back(browser: Browser, tmp_path: Path) -> None:
    """Its chart has a second line, of the undone steps."""
    for number, segments in enumerate(([(0, 1, 9)], [(0, 1, 9), (1, 6, 11)])):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"status": "completed"}))
        places = [(part, step) for part, first, end in segments for step in range(first, end)]
        rows = [{"step": step, "segment": part, "loss": 2.0, "grad_norm": 1.0} for part, step in places]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "events.jsonl").write_text("")
    tab = browser.new_page()
    open_file(tab, write_report([tmp_path]) / "index.html")
    tab.locator(".runs select").focus()
    tab.locator(".runs select").select_option("Gradient norm")
    figure = chart(tab, "Gradient norm, all runs")
    assert figure.locator(".plot").evaluate("plot => plot.data.map(trace => trace.name)") == ["0", "1"]


@pytest.mark.slow
def test_the_numbers_of_a_chart_are_saved(page: Path, browser: Browser) -> None:
    tab = browser.new_page()
    open_file(tab, page)
    with tab.expect_download() as download:
        chart(tab, "Training loss of all runs").locator("button:text-is('CSV')").click()
    assert download.value.suggested_filename == "Training_loss_of_all_runs.csv"
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "series,step,value"
    assert "1 lr=0.1 data=text,5,2.5" in lines
    assert f"2 lr=0.2 data={HOSTILE[:31]}…,1,2.9" in lines


@pytest.mark.slow
def test_the_page_of_a_run_that_goes_on_loads_itself_anew_unless_it_is_held(browser: Browser, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps({"status": "running", "folder": str(run)}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "segment": 0, "loss": 3.0}) + "\n")
    tab = browser.new_page()
    tab.clock.install()
    tab.goto((write_report([run], refresh_seconds=5) / "index.html").as_uri())
    box = tab.get_by_label("new numbers every 5 s")
    box.uncheck()
    tab.evaluate("window.before = true")
    tab.clock.run_for(20_000)
    assert tab.evaluate("window.before === true")
    box.check()
    tab.clock.run_for(1000)
    tab.wait_for_function("window.before === undefined")
    assert box.is_checked()
