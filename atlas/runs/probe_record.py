"""niah.json: what `python -m atlas.niah` found last, and before that by other settings."""

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
from atlas.telemetry.run_files import EARLIER

QUESTION = ("checkpoint", "settings", "lasting", "control")  # keys of an entry: what was asked
KEPT = 31  # earlier entries; the oldest go first


def read_probings(path: Path) -> list[dict[str, Any]]:
    """The entries of the file, newest first; [] where there is none. Raises `ConfigError` for a file that is none."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise _foreign(path) from error
    earlier = content.pop(EARLIER, []) if isinstance(content, dict) else None
    entries = [content, *earlier] if isinstance(earlier, list) else []
    if not entries or not all(isinstance(one, dict) and _is_probed(one.get("results")) for one in entries):
        raise _foreign(path)
    return entries


def _is_probed(results: Any) -> bool:
    return isinstance(results, list) and all(isinstance(one, dict) and "level" in one for one in results)


def record_probing(path: Path, entry: Mapping[str, Any]) -> None:
    """Put the entry first; an earlier one of the same question is replaced. What is not finite becomes null."""
    new = json.loads(json.dumps(plain(entry)))  # as it is read again
    with alone_in(path.parent):
        kept = [one for one in read_probings(path) if any(one.get(key) != new.get(key) for key in QUESTION)]
        write_atomically(path, json.dumps(new | {EARLIER: kept[:KEPT]}, indent=1) + "\n")


def _foreign(path: Path) -> ConfigError:
    return ConfigError(f"{path}: must be a file that niah has written, or moved away: it would be lost")
