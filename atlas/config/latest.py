"""`latest`: a name for the run in outputs/runs that was started or changed last, or the sweep in outputs/sweeps."""

from __future__ import annotations

import sys
from pathlib import Path

from atlas.config.errors import ConfigError
from atlas.config.untrusted import printable

LATEST, RUNS, SWEEPS = "latest", Path("outputs/runs"), Path("outputs/sweeps")


def is_latest(name: str) -> bool:
    """A file or folder of that name is meant where there is one."""
    return name == LATEST and not Path(name).exists()


def latest_run(key: str, tell: bool = True) -> Path:
    """Its folder, of which a line on stderr tells. Raises `ConfigError` naming the key where there is no run."""
    return _newest(key, "run", RUNS, "config.yaml", tell)


def latest_sweep(key: str) -> Path:
    """As `latest_run`."""
    return _newest(key, "sweep", SWEEPS, "sweep.json", tell=True)


def _newest(key: str, what: str, place: Path, file_name: str, tell: bool) -> Path:
    files = list(place.glob(f"*/{file_name}"))
    if not files:
        raise ConfigError(f"{key}={LATEST}: must be a folder, while there is no {what} in {place}")
    newest = max(files, key=lambda file: (file.stat().st_mtime_ns, file)).parent
    if tell:
        print(printable(f"atlas: {LATEST} is {newest}"), file=sys.stderr)
    return newest
