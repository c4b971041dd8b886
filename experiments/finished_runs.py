"""The runs of finished sweeps, for tables over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atlas.config import ConfigError, require
from atlas.config.arguments import names
from atlas.config.composition import load_config
from atlas.config.keys import flat
from atlas.runs.summary import read_summary
from atlas.telemetry.run_files import CONFIG_FILE, JOBS_FILE

IGNORED = ("seed", "logger.", "device.", "checkpoint.", "niah.", "init_from")  # no settings of what a run learns


def jobs(sweeps: Sequence[str], trust: str) -> list[Path]:
    """Folders of all completed jobs, in the order of the sweeps. Raises `ConfigError` for a sweep without one."""
    found: list[Path] = []
    for sweep in sweeps:
        nested = (Path(sweep) / JOBS_FILE).is_file()  # any folder else may hold runs that were not asked for
        folders = [path.parent for path in Path(sweep).glob("**/summary.json" if nested else "*/summary.json")]
        completed = [folder for folder in folders if read_run(folder, trust)[1]["status"] == "completed"]
        require(bool(completed), "SWEEP", sweep, "the folder of a sweep of which a job has completed")
        for left_out in sorted(set(folders) - set(completed)):
            print(f"left out, it did not complete: {left_out}")
        found += sorted(completed, key=lambda folder: (len(folder.name), folder.name))  # 2 before 10
    return found


def read_run(folder: Path, trust: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings by their flat keys, and the summary."""
    summary = read_summary(folder)
    if summary is None:
        raise ConfigError(f"SWEEP={folder}: must hold a summary.json that can be read")
    return flat(asdict(load_config(folder / CONFIG_FILE, names(trust)))), asdict(summary)


def changes(settings: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """What a run learns otherwise than the reference."""
    changed = {key: value for key, value in settings.items() if value != reference.get(key)}
    return {key: value for key, value in changed.items() if not key.startswith(IGNORED)}
