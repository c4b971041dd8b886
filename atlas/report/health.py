"""The health of a run in a few words: healthy, or what was seen."""

from __future__ import annotations

from collections.abc import Sequence

from atlas.report.document import MISSING, Cell
from atlas.report.run_record import RunRecord
from atlas.report.wording import count

HEALTHY = "healthy"
NAMED = 2  # watchers in a cell; the run's own section has all of them


def seen(watchers: Sequence[str], spikes: int, warnings: int) -> list[str]:
    """What was seen of a run; [] of a healthy one. `watchers`: those that have told something."""
    numbers = ((spikes, "spike"), (warnings, "warning"))
    return [*watchers, *(count(number, noun) for number, noun in numbers if number)]


def brief(watchers: Sequence[str], spikes: int, warnings: int) -> list[str]:
    """The same with the first watchers by name."""
    names = list(dict.fromkeys(watchers))
    more = [f"+{len(names) - NAMED}"] if len(names) > NAMED else []
    return seen([*names[:NAMED], *more], spikes, warnings)


def health_cell(record: RunRecord) -> Cell:
    """Of a run that has not ended what was seen so far; the status tells of one that has failed."""
    watchers = [str(event.get("watch")) for event in record.kind("watch")]
    warnings = {str(event.get("message")) for event in record.kind("warning")}  # each start repeats what it starts with
    found = brief(watchers, len(record.kind("spike")), len(warnings))
    found += ["damaged files"] if record.problems else []
    if found:
        return Cell(", ".join(found), tone="busy")
    return Cell(HEALTHY, tone="good") if record.status in ("completed", "running") and record.events else Cell(MISSING)
