"""A preparation that is killed (SIGKILL) at random moments and started again each time, against the undisturbed one.

python -m experiments.corpus.kills [kills=20] [megabytes=16] [tokenizer=train:2000]

Every second kill strikes the first process only, so that its workers must notice by themselves. After each kill there
must be either no store or a whole one; at the end it must be bytewise that of the undisturbed command. Writes to
the console only. Exit status 1: one of these does not hold.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atlas.config import require
from atlas.config.arguments import read_settings, run_command
from atlas.data.store import TokenStore

WORDS = 5000
LEFT_SECONDS = 20.0  # patience with a worker whose first process is gone


@dataclass
class KillSettings:
    kills: int = 20
    megabytes: int = 16
    tokenizer: str = "train:2000"

    def __post_init__(self) -> None:
        require(self.kills >= 1, "kills", self.kills, ">= 1")
        require(self.megabytes >= 1, "megabytes", self.megabytes, ">= 1")


def write_source(path: Path, megabytes: int) -> None:
    """Documents of random words of random letters, as JSONL."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(WORDS)]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 10**6:
            picked = rng.integers(0, WORDS, rng.integers(10, 400))
            written += file.write(json.dumps({"text": " ".join(words[index] for index in picked)}) + "\n")


def start(source: Path, out: Path, tokenizer: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "atlas.prepare", str(source), f"out={out}", f"tokenizer={tokenizer}", "workers=2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(source: Path, out: Path, tokenizer: str) -> float:
    """Seconds that the command takes to its end."""
    began = time.monotonic()
    process = start(source, out, tokenizer)
    told = process.communicate()[1].decode()
    if process.returncode:
        sys.exit(f"the command ended with status {process.returncode}: {told}")
    return time.monotonic() - began


def wait_for_group(group: int) -> bool:
    """Whether all processes of the group end."""
    deadline = time.monotonic() + LEFT_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(arguments: Sequence[str]) -> int:
    settings = read_settings(KillSettings, arguments)
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        source, wanted, out = (Path(folder, name) for name in ("text.jsonl", "wanted", "out"))
        write_source(source, settings.megabytes)
        seconds = finish(source, wanted, settings.tokenizer)
        print(f"undisturbed: {seconds:.1f} s")
        struck = too_late = orphans = 0
        while struck < settings.kills:
            process = start(source, out, settings.tokenizer)
            time.sleep(draw.uniform(0.0, seconds))
            alone = struck % 2 == 1
            (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
            process.communicate()
            orphans += not wait_for_group(process.pid)
            if process.returncode == 0:
                too_late += 1
            else:
                struck += 1
            finished = len(list(Path(folder, "out.partial/units").glob("*.json")))
            if out.exists():
                TokenStore(out, "out").verify()
                print(f"kill {struck}: a whole store")
                for path in out.iterdir():
                    path.unlink()
                out.rmdir()
            else:
                print(f"kill {struck}: no store, {finished} units done")
        finish(source, out, settings.tokenizer)
        same = content(out) == content(wanted)
    print(f"{struck} kills, {too_late} starts that were done before their kill, {orphans} with processes left behind")
    print(f"the store is {'bytewise that' if same else 'NOT that'} of the undisturbed command")
    return 0 if same and not orphans else 1


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
