"""`write_report`: from folders of runs to a folder with index.html and report.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from atlas.config import ConfigError
from atlas.config.atomic import write_atomically
from atlas.config.console import log
from atlas.config.untrusted import read_json
from atlas.report.comparison import comparison_section, counts, decision_blocks, label
from atlas.report.document import Block, Cell, Document, Picture, Section, Table, Text
from atlas.report.folders import Selection, missing_jobs, names_of, select_runs
from atlas.report.lines import MANY as SHORTEST
from atlas.report.lines import SMOOTHED
from atlas.report.markdown import to_markdown
from atlas.report.options import chosen_options, swept_values
from atlas.report.page import SCRIPT, to_page
from atlas.report.run_record import RunRecord, read_run
from atlas.report.run_section import folded_section, run_sections
from atlas.report.settings import differences, swept_names
from atlas.report.wording import count, utc_time, value_text

POINTS = 1000  # most points of a line on the page of few runs
POINTS_OF_MANY = 300  # and of many
MANY = 8  # runs


def write_report(
    folders: Sequence[Path],
    target: Path | None = None,
    *,
    one_file: bool = False,
    refresh_seconds: int = 0,
    tell: Callable[[Document], object] | None = None,
) -> Path:
    """Report the runs and sweeps in `folders`; returns the folder with index.html and report.md.

    By default that is `report/` in the one folder given, or outputs/reports/<time> for several. `one_file`: the page
    holds the script of its charts. `refresh_seconds`: the page loads itself anew so often while a run goes on. `tell`
    gets what is written. Raises `ConfigError` for folders that hold no run and for a target that cannot be written.
    """
    selection = select_runs(folders)
    target = _target(selection, target)
    refresh_seconds = refresh_seconds if selection.goes_on else 0  # before it is read: a later page has the end
    records: list[RunRecord] = []
    for run, name in zip(selection.runs, names_of(selection.runs), strict=True):
        log.info("reads run %d of %d: %s", len(records) + 1, len(selection.runs), name)
        records.append(read_run(run, name))
    document = compose_document(selection, records)
    inline = _script().read_text(encoding="utf-8") if one_file else ""
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / "report.md", to_markdown(document))
        if not one_file:
            _copy_script(target)
        for block in (block for section in document.sections for block in section.blocks):
            if isinstance(block, Picture):
                shutil.copyfile(block.source, target / block.file)
        page = to_page(document, inline=inline, refresh_seconds=refresh_seconds)
        write_atomically(target / "index.html", page)
    except OSError as error:
        raise ConfigError(f"target={target}: must be a folder that can be written ({error.strerror})") from error
    if tell is not None:
        tell(document)
    return target


def compose_document(selection: Selection, records: Sequence[RunRecord]) -> Document:
    limit = POINTS if len(records) <= MANY else POINTS_OF_MANY
    swept = [name for sweep in selection.sweeps for name in swept_names(sweep)]
    given = _given(selection)
    configs = [record.config for record in records]
    differing = differences(configs, swept, chosen_options(configs, given))
    labels = [label(record.name, index, differing) for index, record in enumerate(records)]
    anchors = [f"run-{index}" for index in range(len(records))]
    several = len(records) > 1
    sections = [*_missing(selection), *_decisions(selection)]
    if several:
        sections.append(comparison_section(records, differing, labels, anchors, limit))
    for record, name, anchor in zip(records, labels, anchors, strict=True):
        log.info("describes %s", name)
        one = [folded_section(record, name, anchor, limit)] if several else []
        sections += one or run_sections(record, "Run", anchor, limit)
    sections += _settings(configs)
    newest = max((record.last_time for record in records if record.last_time is not None), default=None)
    lead = f"{count(len(records), 'run')}: {counts(records)}. Newest row: {utc_time(newest)}."
    return Document(selection.title, lead, sections, [_thinned(records, limit)])


def _settings(configs: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The configuration; of several runs what all of them share."""
    known = [config for config in configs if config]
    if not known:
        return []
    shared = {key: value for key, value in known[0].items() if all(config.get(key, ...) == value for config in known)}
    rows = [[Cell(key), Cell(value_text(value))] for key, value in sorted(shared.items())]
    title = "Configuration" if len(configs) == 1 else "Configuration that all runs share"
    return [Section("Settings", "settings", [Table(title, ("key", "value"), rows, sortable=True)], folded=True)]


def _given(selection: Selection) -> list[dict[str, str]]:
    """What the sweep of each run gave it; {} for a single run."""
    values = {sweep / folder: own for sweep in selection.sweeps for folder, own in swept_values(sweep).items()}
    return [values.get(run, {}) for run in selection.runs]


def _thinned(records: Sequence[RunRecord], limit: int) -> str:
    longest = max(len(record.rows) for record in records)
    means = (
        f" A mean in a legend covers the {100 // SMOOTHED} % of a run's rows before it." if longest >= SHORTEST else ""
    )
    if longest <= limit:
        return f"Charts show every recorded row, {longest:,} at most.{means}"
    return (
        f"Charts show about {limit:,} points of a line's up to {longest:,} rows: the lowest and the highest value of "
        "each stretch, and every spike and rollback, are kept. All rows are in metrics.jsonl of each run." + means
    )


def _missing(selection: Selection) -> list[Section]:
    """The jobs of which nothing is there: they were not started, or their folders were removed."""
    blocks: list[Block] = []
    for sweep in selection.sweeps:
        if jobs := missing_jobs(sweep):
            blocks.append(Text(f"Jobs of {sweep.name} that left nothing: {', '.join(jobs)}", tone="bad"))
    return [Section("Missing jobs", "missing", blocks)] if blocks else []


def _decisions(selection: Selection) -> list[Section]:
    blocks: list[Block] = []
    for sweep in selection.sweeps:
        try:
            outcome = read_json(sweep / "decision.json")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            blocks.append(Text(f"decision.json of {sweep.name} cannot be read ({type(error).__name__})", tone="bad"))
            continue
        document = sweep / "decision.md"
        written = document.read_text(encoding="utf-8", errors="replace") if document.is_file() else ""
        blocks += decision_blocks(outcome if isinstance(outcome, dict) else {}, written)
    return [Section("Decision", "decision", blocks)] if blocks else []


def _target(selection: Selection, target: Path | None) -> Path:
    if target is not None:
        return Path(target).resolve()
    if len(selection.given) == 1:
        return selection.given[0] / "report"
    return Path("outputs/reports").resolve() / f"{datetime.now():%Y%m%d-%H%M%S-%f}"


def _script() -> Traversable:
    return files("plotly") / "package_data" / SCRIPT


def _copy_script(target: Path) -> None:
    there, content = target / SCRIPT, _script().read_bytes()
    if not there.exists() or there.stat().st_size != len(content):
        there.write_bytes(content)
