"""Report runs and sweeps: `python -m atlas.report DIR... [target=PATH]`.

DIR is the folder of a run or of a sweep; several are compared. Writes index.html, which opens without a network,
and report.md: by default into DIR/report, for several into outputs/reports/<time>. Runs that are still going, that
crashed or were killed are reported as far as they came. Exit status: 0 written; 2 refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from atlas.config import require
from atlas.config.arguments import run_command
from atlas.config.console import PROGRESS_SECONDS, print_result, progress
from atlas.config.path_overrides import expanded
from atlas.config.untrusted import printable
from atlas.report.writing import write_report

USAGE = "python -m atlas.report DIR... [target=PATH]"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(_write, arguments, f"{USAGE}\n\n{__doc__}")


def _write(arguments: Sequence[str]) -> int:
    with progress(quiet_seconds=PROGRESS_SECONDS):
        folder = write_report(*parse(arguments))
    print_result(printable(f"{folder / 'index.html'}\n{folder / 'report.md'}"))
    return 0


def parse(arguments: Sequence[str]) -> tuple[list[Path], Path | None]:
    """Folders and target. Raises `ConfigError`. A folder's name may hold "=", as a sweep's job does."""
    folders, target = [], None
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "target":
            require(bool(value) and target is None, "target", value, "one folder")
            target = expanded(value)
        else:
            known = not argument.startswith("-") and (key == argument or Path(argument).exists() or "/" in argument)
            require(known, key, value, f"left out: {USAGE}")
            folders.append(expanded(argument))
    return folders, target


if __name__ == "__main__":
    sys.exit(main())
