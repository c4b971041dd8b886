"""What the tests of sweeps share: command lines in this process and in one of their own, and what a sweep left."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from atlas.train import main

# Six jobs, of which one cannot be: 96 tokens are no multiple of a shard of 64.
SIX = ["train.sequence=64,96", "chunk_size.shard=16,32,64"]
REFUSED = "train.sequence=96: must be a multiple of chunk_size.shard=64 (or set train.pad_shards=true)"


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: list[str]


def command(*arguments: str) -> Ended:
    """The command line, in this process."""
    out, err, handler, before = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM), sys.argv
    sys.argv = ["atlas-train", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
        signal.signal(signal.SIGTERM, handler)
    return Ended(status, out.getvalue(), err.getvalue().splitlines())


def process(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "atlas.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has them ignore SIGINT, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def finished(running: subprocess.Popen[str]) -> Ended:
    out, err = running.communicate(timeout=120)
    return Ended(running.returncode, out, err.splitlines())


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def statuses(sweep: Path, jobs: int) -> list[str | None]:
    folders = [sweep / str(number) for number in range(jobs)]
    return [summary(folder)["status"] if (folder / "summary.json").exists() else None for folder in folders]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(ended: Ended) -> list[list[str]]:
    """The jobs as the closing table shows them, a list of cells each."""
    lines = ended.out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("job  settings"))
    return [re.split(r"  +", line) for line in lines[start + 1 : lines.index(report_line(ended))]]


def report_line(ended: Ended) -> str:
    return next(line for line in ended.out.splitlines() if line.startswith("report: "))


def wait_for(path: Path) -> None:
    """Until the file has a line; the process that writes it is watched by `finished`."""
    deadline = time.monotonic() + 90
    while not (path.exists() and path.read_bytes().count(b"\n")) and time.monotonic() < deadline:
        time.sleep(0.05)
