"""Report runs and sweeps: `python -m atlas.report DIR... [target=PATH] [one_file=true] [watch=SECONDS]`.

DIR is the folder of a run or of a sweep, `latest` the newest in outputs/runs; several are compared. Writes index.html,
which opens without a network, and report.md: by default into DIR/report, for several into outputs/reports/<time>. Of
several runs it prints a table too. Runs that are still going, that crashed or were killed are reported as far as they
came.

  target=PATH      the folder to write
  one_file=true    index.html holds the script of its charts: one file to send, of about 5 MB
  watch=SECONDS    write it again every so many seconds until no run goes on; an open page shows the new numbers

Exit status: 0 written; 2 refused; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.config import require
from atlas.config.arguments import given_folder, run_command
from atlas.config.console import PROGRESS_SECONDS, print_result, progress
from atlas.config.path_overrides import expanded
from atlas.config.untrusted import printable
from atlas.report.document import Document
from atlas.report.folders import select_runs
from atlas.report.terminal import comparison_lines
from atlas.report.writing import write_report

USAGE = "python -m atlas.report DIR... [target=PATH] [one_file=true] [watch=SECONDS]"
MOST_SECONDS = 86_400


@dataclass
class Request:
    """What the command line asks for."""

    folders: list[Path]
    target: Path | None = None
    one_file: bool = False
    watch: int = 0  # seconds; 0 = written once


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return run_command(_write, arguments, f"{USAGE}\n\n{__doc__}")


def _write(arguments: Sequence[str]) -> int:
    wanted = parse(arguments)
    tell: Callable[[Document], object] | None = _print_comparison
    going_on = True
    while going_on:
        # Looked at first: the last page has the end.
        going_on = bool(wanted.watch) and select_runs(wanted.folders).goes_on
        with progress(quiet_seconds=PROGRESS_SECONDS):
            folder = write_report(
                wanted.folders, wanted.target, one_file=wanted.one_file, refresh_seconds=wanted.watch, tell=tell
            )
        if tell is not None:
            print_result(printable(f"{folder / 'index.html'}\n{folder / 'report.md'}"))
            if wanted.watch and not going_on:
                print_result("no run goes on: written once")
        tell, wanted.target = None, folder
        if going_on:
            time.sleep(wanted.watch)
    return 0


def _print_comparison(document: Document) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None
    lines = comparison_lines(document, width)
    if lines:
        print_result(printable("\n".join([*lines, ""])))


def parse(arguments: Sequence[str]) -> Request:
    """Folders and settings. Raises `ConfigError`. A folder's name may hold "=", as a sweep's job does."""
    wanted = Request([])
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "target":
            require(bool(value) and wanted.target is None, "target", value, "one folder")
            wanted.target = expanded(value)
        elif key == "one_file":
            require(value in ("true", "false"), "one_file", value, "true or false")
            wanted.one_file = value == "true"
        elif key == "watch":
            sound = value.isdecimal() and len(value) < 9 and 1 <= int(value) <= MOST_SECONDS
            require(sound, "watch", value, f"seconds in [1, {MOST_SECONDS}]")
            wanted.watch = int(value)
        else:
            known = not argument.startswith("-") and (key == argument or Path(argument).exists() or "/" in argument)
            require(known, key, value, f"left out: {USAGE}")
            wanted.folders.append(given_folder(argument))
    return wanted


if __name__ == "__main__":
    sys.exit(main())
