"""`latest`: a name for the run in outputs/runs that was started or changed last."""

from __future__ import annotations

import sys
from pathlib import Path

from atlas.config.errors import ConfigError
from atlas.config.untrusted import printable

LATEST, RUNS = "latest", Path("outputs/runs")


def is_latest(name: str) -> bool:
    """A file or folder of that name is meant where there is one."""
    return name == LATEST and not Path(name).exists()


def latest_run(key: str, tell: bool = True) -> Path:
    """Its folder, of which a line on stderr tells. Raises `ConfigError` naming the key where there is no run."""
    runs = list(RUNS.glob("*/config.yaml"))
    if not runs:
        raise ConfigError(f"{key}={LATEST}: must be a folder, while there is no run in {RUNS}")
    newest = max(runs, key=lambda file: (file.stat().st_mtime_ns, file)).parent
    if tell:
        print(printable(f"atlas: {LATEST} is {newest}"), file=sys.stderr)
    return newest
