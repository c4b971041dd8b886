"""The pictures of the README's tour, of real runs.

python experiments/tour/make_pictures.py RUN SWEEP ROLLBACK_RUN

RUN was probed with `python -m atlas.niah RUN`, SWEEP is the folder of a sweep, ROLLBACK_RUN a run that rolled back.
Writes docs/pictures/{heatmap,sweep,rollback}.png, each below 300 kB, in about a minute. Needs an installed Chromium.
Exit status: 0 written, 2 refused.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from atlas.config import ConfigError, require
from atlas.config.arguments import run_command
from atlas.report import write_report
from experiments.browser import SETTLED, BrowserMissingError, open_file, opened_browser

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
MOST_BYTES = 300_000
COLOURS = (256, 128, 64, 32)  # of a picture's palette: as many as keep it below MOST_BYTES
WIDTH, HEIGHT = 1160, 1000  # CSS pixels
MOST_CHARTS = 4

# Leaves the first charts whose titles begin as wanted; returns their number.
ISOLATE = """(() => {
  const wanted = %s;
  const chosen = [...document.querySelectorAll("figure.chart")]
    .filter(figure => wanted.some(title => figure.querySelector("h3").textContent.startsWith(title))).slice(0, %d);
  const main = document.createElement("main");
  main.className = "charts";
  main.append(...chosen);
  document.body.replaceChildren(main);
  window.dispatchEvent(new Event("resize"));
  return chosen.length;
})()"""


def main(arguments: Sequence[str]) -> int:
    require(len(arguments) == 3, "arguments", " ".join(arguments), "RUN SWEEP ROLLBACK_RUN")
    try:
        make_pictures(*map(Path, arguments))
    except BrowserMissingError as error:
        raise ConfigError(str(error)) from error
    return 0


def make_pictures(run: Path, sweep: Path, rolled_back: Path) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, opened_browser() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        open_file(page, write_report([run], Path(folder) / "run") / "index.html", "?all")
        found = page.evaluate(ISOLATE % (json.dumps(["Needles found"]), MOST_CHARTS))
        require(found > 0, "RUN", run, "a run that python -m atlas.niah probed")
        take(page, "heatmap", element="main")

        open_file(page, write_report([rolled_back], Path(folder) / "back") / "index.html", "?all")
        told = page.evaluate("document.body.textContent.includes('rollback to')")
        require(told, "ROLLBACK_RUN", rolled_back, "a run that rolled back")
        page.evaluate(ISOLATE % (json.dumps(["Loss", "Perplexity delta"]), MOST_CHARTS))
        take(page, "rollback", element="main")

        open_file(page, write_report([sweep], Path(folder) / "sweep") / "index.html")
        take(page, "sweep")


def take(page: Page, name: str, element: str = "") -> None:
    path = PICTURES / f"{name}.png"
    page.evaluate(SETTLED)
    if element:
        page.locator(element).first.screenshot(path=path)
    else:
        page.screenshot(path=path)
    full = Image.open(path).convert("RGB")
    for colours in COLOURS:
        if path.stat().st_size < MOST_BYTES:
            break
        full.quantize(colours).save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
