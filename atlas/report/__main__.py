"""Report runs and sweeps: `python -m atlas.report DIR... [target=PATH]`.

DIR is the folder of a run or of a sweep; several are compared. Writes index.html, which opens without a network,
and report.md: by default into DIR/report, for several into outputs/reports/<time>. Runs that are still going, that
crashed or were killed are reported as far as they came. Exit status: 0 written; 2 refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from atlas.config import ConfigError, require
from atlas.report.writing import write_report

USAGE = "python -m atlas.report DIR... [target=PATH]"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not {"-h", "--help"}.isdisjoint(given):
        print(f"{USAGE}\n\n{__doc__}")
        return 0
    try:
        folder = write_report(*parse(given))
    except ConfigError as error:
        print(f"atlas: {error}", file=sys.stderr)
        return 2
    print(f"{folder / 'index.html'}\n{folder / 'report.md'}")
    return 0


def parse(arguments: Sequence[str]) -> tuple[list[Path], Path | None]:
    """Folders and target. Raises `ConfigError`. A folder's name may hold "=", as a sweep's job does."""
    folders, target = [], None
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "target":
            require(bool(value) and target is None, "target", value, "one folder")
            target = Path(value)
        else:
            known = not argument.startswith("-") and (key == argument or Path(argument).exists() or "/" in argument)
            require(known, key, value, f"left out: {USAGE}")
            folders.append(Path(argument))
    return folders, target


if __name__ == "__main__":
    sys.exit(main())
