"""Running a command of atlas in a process of its own: its output goes into a log, its newest line to the terminal."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

GRACE_SECONDS = 60.0  # for a run to save what it has, when it is told to stop
TERMINAL_SECONDS, PLAIN_SECONDS = 0.2, 60.0  # between two lines shown
WIDTH = 100  # characters of a line shown: one that wraps could not be written over


def run_logged(command: Sequence[str], log: Path, show: Callable[[str], None]) -> int:
    """Run `python -m COMMAND`, append all it says to `log`, show every line; returns the exit status.

    An interrupt stops the command first, in good order.
    """
    arguments = [sys.executable, "-u", "-m", *command]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(['python', *arguments[2:]])}\n")
        file.flush()
        # A session of its own: Ctrl-C reaches the gate alone, which passes it on once.
        with subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                for line in process.stdout or ():
                    file.write(line)
                    file.flush()
                    show(line.rstrip())
            except BaseException:
                _stop(process)
                raise
    return process.returncode


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


class Progress:
    """One line that is written over on a terminal; elsewhere a line a minute."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self._shown = 0.0
        self._began = 0.0
        self._title = ""

    def begin(self, title: str) -> None:
        self._title, self._began = title, time.perf_counter()
        self._shown = self._began
        self._write(f"{title} ...", keep=not self.live)

    def show(self, line: str) -> None:
        """The newest line of what is running, where it is due."""
        now = time.perf_counter()
        if line and now - self._shown >= (TERMINAL_SECONDS if self.live else PLAIN_SECONDS):
            self._shown = now
            self._write(f"  {now - self._began:4.0f} s  {line.strip()}"[:WIDTH], keep=not self.live)

    def end(self, outcome: str) -> None:
        self._write(f"{self._title}: {outcome}, {time.perf_counter() - self._began:.0f} s", keep=True)

    def say(self, line: str) -> None:
        self._write(line, keep=True)

    def _write(self, line: str, *, keep: bool) -> None:
        clear = "\r\x1b[2K" if self.live else ""
        print(f"{clear}{line}", end="\n" if keep else "", file=self.stream, flush=True)
