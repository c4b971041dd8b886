"""Values as texts of the report: a number in few digits, a time, a size; "-" for a missing one."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isfinite
from typing import Any

from atlas.report.document import MISSING, Cell

LAST_SECOND = 253_402_300_800  # the year 10000, past which there is no date
VALIDATION_LOSS = "validation nats/byte"  # of runs that are compared, with any tokenizers; short for a terminal
TONES = {"completed": "good", "passed": "good", "failed": "bad", "aborted": "bad", "killed": "bad", "running": "busy"}


def finite(value: Any) -> float | None:
    """`value` as a float; None for anything else than a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # of a damaged file
        return None
    return found if isfinite(found) else None


def number(value: Any, form: str = ".4g", unit: str = "") -> str:
    found = finite(value)
    return MISSING if found is None else f"{found:{form}}{unit}"


def number_cell(value: Any, form: str = ".4g", unit: str = "") -> Cell:
    return Cell(number(value, form, unit), order=finite(value), numeric=True)


def share_cell(value: Any) -> Cell:
    """A ratio in percent."""
    return number_cell(value, ".1%")


def size_cell(value: Any) -> Cell:
    """Bytes in GiB."""
    found = finite(value)
    return number_cell(None if found is None else found / 2**30, ".2f", " GiB")


def status_cell(status: str) -> Cell:
    return Cell(status, tone=TONES.get(status.split()[0] if status else "", ""))


def value_text(value: Any) -> str:
    """A setting as it would be typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(value_text(item) for item in value)}]"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def setting_cell(value: Any) -> Cell:
    return Cell(value_text(value), order=finite(value), numeric=finite(value) is not None)


def brief(text: str, length: int = 32) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def utc_time(seconds: float | None) -> str:
    """Seconds since 1970 as a UTC time."""
    if seconds is None or not 0 <= seconds < LAST_SECOND:
        return MISSING
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def overhead_name(key: str) -> str:
    """Of a key of `overhead` in summary.json, where "watch" stands beside "watchers"."""
    return "perplexity watch" if key == "watch" else key
