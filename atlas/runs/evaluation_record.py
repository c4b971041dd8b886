"""evaluation.json: what was found for every question that was asked about a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas.config import ConfigError
from atlas.config.atomic import write_atomically
from atlas.config.lock import alone_in
from atlas.config.untrusted import read_json
from atlas.telemetry.jsonl import plain

EVALUATION_FILE = "evaluation.json"
NO_QUESTION = ("paths", "trust")  # settings: the texts themselves are compared, not how they were named
MOST_BYTES = 2**28


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The entries of the file; [] where there is none. Raises `ConfigError` for a file that would be lost."""
    try:
        content = read_json(path, MOST_BYTES)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _foreign(path) from error
    found = content.get("evaluations", [content]) if isinstance(content, dict) else None  # once it held one entry
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _foreign(path)
    return found


def record_evaluation(path: Path, entry: Mapping[str, Any]) -> None:
    """Add the entry; one of the same checkpoint, texts and settings is replaced."""
    new = plain(entry)
    with alone_in(path.parent):
        kept = [one for one in read_evaluations(path) if _question(one) != _question(new)]
        write_atomically(path, json.dumps({"evaluations": [*kept, new]}, indent=1) + "\n")


def _question(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    settings = entry.get("settings")
    asked = {key: value for key, value in settings.items() if key not in NO_QUESTION} if settings else {}
    return entry.get("checkpoint"), entry.get("texts"), asked


def _foreign(path: Path) -> ConfigError:
    return ConfigError(f"{path}: must be a file that evaluate has written, or moved away: it would be lost")
