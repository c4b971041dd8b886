"""How long the report of a large sweep takes to write and to open.

python experiments/report_speed/speed.py [REPEATS]

40 made-up runs of 10,000 rows, written and opened REPEATS times (5). Without Chromium the page is not opened. Writes
RESULTS.md and speed.json beside this file, in some minutes. Exit status: 0 below all limits, 1 not, 2 refused.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from synthetic import write_sweep

from atlas.config import require
from atlas.config.arguments import run_command
from atlas.report import write_report
from atlas.runs.environment import git_revision
from experiments.browser import BrowserMissingError, open_file, opened_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
RUNS, ROWS = 40, 10_000
LIMITS = {"write": 20.0, "work": 20.0, "open": 3.0, "draw": 3.0}  # seconds, wanted
NAMES = {
    "write": "write the report", "work": "the same, time on a processor", "open": "open the page",
    "draw": "draw the charts that compare the runs",
}  # fmt: skip
CHARTS = "[...document.querySelectorAll('#comparison .plot')]"
PACKAGES = ("atlas-test-time-memory", "numpy", "omegaconf", "plotly")


def main(arguments: Sequence[str]) -> int:
    given = arguments[0] if len(arguments) == 1 else " ".join(arguments) or "5"
    require(given.isdecimal() and int(given) > 0, "REPEATS", given, "one number >= 1")
    repeats = int(given)
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "sweep"
        write_sweep(sweep, RUNS, ROWS)
        written = [time_writing(sweep) for _ in range(repeats)]
        page = sweep / "report" / "index.html"
        seen, browser_version = [], ""
        for _ in range(repeats):  # each in a browser of its own, with an empty cache
            with suppress(BrowserMissingError), opened_browser() as browser:
                seen.append(time_opening(browser, page))
                browser_version = f"Chromium {browser.version}"
        sizes = {"rows": sum(p.stat().st_size for p in sweep.rglob("metrics.jsonl")), "page": page.stat().st_size}
    record = {
        "runs": RUNS, "rows": ROWS, "bytes": sizes, "limits": LIMITS,
        "seconds": {
            "write": [wall for wall, _ in written], "work": [work for _, work in written],
            "open": [opened for opened, _ in seen], "draw": [drawn for _, drawn in seen],
        },
        "load": os.getloadavg()[1],
        "git": git_revision(), "browser": browser_version, "cores": os.cpu_count(), "machine": platform.machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }  # fmt: skip
    (HERE / "speed.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (HERE / "RESULTS.md").write_text(results(record), encoding="utf-8")
    print(results(record))
    return 0 if all(median(found) <= LIMITS[name] for name, found in record["seconds"].items() if found) else 1


def time_writing(sweep: Path) -> tuple[float, float]:
    """Seconds of the clock on the wall, and of this process on a processor: they part where others use it too."""
    began, worked = time.perf_counter(), time.process_time()
    write_report([sweep])
    return time.perf_counter() - began, time.process_time() - worked


def time_opening(browser: Browser, path: Path) -> tuple[float, float]:
    """Seconds of the page's own clock: until it was loaded, and from then on to draw the comparison's charts."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_file(page, path)
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    began = page.evaluate("performance.now()")
    for index in range(page.evaluate(f"{CHARTS}.length")):
        page.evaluate(f"{CHARTS}[{index}].scrollIntoView()")
        page.wait_for_function(f"{CHARTS}[{index}].classList.contains('js-plotly-plot')")
    drawn = (page.evaluate("Number(document.documentElement.dataset.shown)") - began) / 1000
    if errors:
        raise RuntimeError(f"script errors: {errors}")
    page.close()
    return loaded, drawn


def results(record: dict[str, Any]) -> str:
    taken, limits = record["seconds"], record["limits"]
    rows = [f"| {name} | {_seconds(taken[key])} | {limits[key]:g} s |" for key, name in NAMES.items()]
    versions = ", ".join(f"{name} {found}" for name, found in record["versions"].items())
    return "\n".join([
        "# Report of a large sweep: time to write and to open",
        "",
        "Written by `python experiments/report_speed/speed.py`; do not edit. The rows are made up (`synthetic.py`).",
        "",
        f"{record['runs']} runs of {record['rows']:,} rows, {record['bytes']['rows'] / 1e6:,.0f} MB; "
        f"page {record['bytes']['page'] / 1e6:.1f} MB beside plotly's script.",
        "",
        "| | median (lowest to highest) | wanted below |",
        "| --- | --: | --: |",
        *rows,
        "",
        f"{len(taken['write'])} repeats on {record['cores']} cores ({record['machine']}) "
        f"at a load of {record['load']:.1f} (mean of 5 minutes, this command included), "
        f"{record['browser'] or 'no browser'} headless with an empty profile; {versions}; "
        f"revision {record['git'] or 'unknown'}.",
        "",
    ])  # fmt: skip


def _seconds(values: list[float]) -> str:
    return f"{median(values):.2f} s ({min(values):.2f} to {max(values):.2f})" if values else "not measured"


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
