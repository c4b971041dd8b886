"""Runs in processes of their own, forked from this one after its imports, and what a user sees of them."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

import atlas
import atlas.runs.run
from atlas.telemetry.run_files import RunFiles
from atlas.train import main as train_main

LITTLE_TEXT = Path(atlas.__file__).parent / "training" / "[!_]*.py"  # 80 kB: a start takes less than a second
STEPS = 240
# One layer of width 32 on sequences of 64 bytes; watch, rollback, gate and optimiser as by default.
SMALL = (
    "model.width=32",
    "model.layers=1",
    "model.feedforward=64",
    "model.memory.hidden=16",
    "model.persistent_keys=8",
    "model.window=8",
    "train.sequence=64",
    "chunk_size.shard=32",
    "chunk_size.global_size=32",
    "chunk_size.local=[8]",
    "train.batch_size=4",
    f"train.steps={STEPS}",
    "train.validation_every=50",
    "train.validation_batches=2",
    "checkpoint.every=50",
    "telemetry.every=5",
    "niah=off",
    "logger=none",
    "device=cpu",
    "device.threads=1",
)
TEXT = ("data=text", f'data.paths=["{LITTLE_TEXT}"]')
# Half of the rows are recall: few pairs, each asked for beyond the reach of attention, which is 7 tokens.
MIXED = (
    "data=mixed",
    f'data.paths=["{LITTLE_TEXT}"]',
    "data.recall.pairs=6",
    "data.recall.queries=6",
    "data.recall.sparse_pairs=2",
    "data.recall.sparse_queries=4",
    "data.recall.distance_min=16",
)
PATIENCE_SECONDS = 300.0  # on a busy machine

Main = Callable[[list[str]], int]


def train(arguments: list[str]) -> int:
    """`python -m atlas.train` in this process."""
    sys.argv = ["atlas.train", *arguments]
    return train_main()


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: the signal that killed it) and what it printed."""

    status: int
    printed: str
    folder: Path  # of the run

    @property
    def events(self) -> list[dict[str, object]]:
        return RunFiles(self.folder, strict=False).events


@dataclass
class Running:
    """A command that runs in a process of its own."""

    process: int
    printed: Path
    folder: Path

    def wait_for_step(self, step: int) -> int:
        """Wait until a row of `step` or later is on file; the newest step then."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (newest := self.newest_step()) < step:
            if time.monotonic() > deadline or os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                raise RuntimeError(f"the run ended at step {newest}, before {step}: {self.printed.read_text()[-2000:]}")
            time.sleep(0.005)
        return newest

    def newest_step(self) -> int:
        rows = RunFiles(self.folder, strict=False).rows
        return int(rows[-1]["step"]) if rows else 0

    def wait(self) -> Ended:
        _, status = os.waitpid(self.process, 0)
        return Ended(os.waitstatus_to_exitcode(status), self.printed.read_text(errors="replace"), self.folder)


@dataclass
class Bench:
    """The place of the runs of one failure and one seed."""

    scratch: Path
    seed: int
    started: int = field(default=0)

    def start(
        self,
        *settings: str,
        folder: str = "run",
        main: Main = train,
        environment: Mapping[str, str] | None = None,
        executed: bool = False,
        bare: bool = False,
    ) -> Running:
        """Start a training run in `folder`, or another command. `executed`: in a fresh Python, for an environment that
        counts when it is loaded. `bare`: with the settings given, and not those of the small model."""
        place = self.scratch / folder
        if main is train:
            small = () if bare else SMALL
            settings = (*small, f"seed={self.seed}", f"hydra.run.dir={place}", *settings)
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.started += 1
        printed = self.scratch / f"printed-{self.started}.txt"
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process == 0:
            _become(main, list(settings), printed, dict(os.environ) | dict(environment or {}), self.scratch, executed)
        return Running(process, printed, place)

    def run(self, *settings: str, folder: str = "run", main: Main = train, bare: bool = False) -> Ended:
        return self.start(*settings, folder=folder, main=main, bare=bare).wait()


def _become(
    main: Main, arguments: list[str], printed: Path, environment: dict[str, str], here: Path, executed: bool
) -> None:
    """The forked process: it does the command and ends."""
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(here)
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if executed:
            os.execve(sys.executable, [sys.executable, "-m", "atlas.train", *arguments], environment)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(1)
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def lines(ended: Ended) -> list[str]:
    return ended.printed.splitlines()


def of_table(ended: Ended) -> dict[str, str]:
    """The closing table by the name of its rows; {} where there is none."""
    found: dict[str, str] = {}
    for line in reversed(lines(ended)):
        if not line.startswith("  "):
            if found:
                break
            continue
        name, _, value = line.strip().partition("  ")
        found[name] = value.strip()
    return found
