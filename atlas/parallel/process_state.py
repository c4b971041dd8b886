"""Whether another process of this machine runs."""

from __future__ import annotations

import os
from pathlib import Path

STATE, MEMORY = 0, 20  # of /proc/N/stat behind the name of the program: fields 3 and 23 of man 5 proc_pid_stat


def is_running(process: int) -> bool:
    """False as soon as its connections break.

    A process that is killed gives up its memory, then its connections, then its files, and is a zombie at last: a file
    that the disk still works on makes that seconds.
    """
    try:
        os.kill(process, 0)
        _, _, fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")
        return fields.split()[STATE] != "Z" and fields.split()[MEMORY] != "0"
    except ProcessLookupError:
        return False
    except OSError:  # no /proc
        return True
