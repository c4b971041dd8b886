"""All that is worth knowing of a GPU, in half an hour: first whether it is right, then how fast it is.

python -m experiments.gpu.half_hour folder=FOLDER [minutes=30] [parts=machine,tests,...] [rehearse=true]

Parts come in order of value. Each is a few commands with a time limit. It writes FOLDER/<number>-<part>.txt as it runs,
and FOLDER/all.txt in the end; its last lines go to the screen. A part that fails or takes too long does not stop the
next. With minutes=9 the parts that fit are run, and it ends in time. `rehearse=true` runs the same commands small on a
CPU, with the Triton kernels in their interpreter. Exit status: 0 all parts ended well, 1 not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from atlas.config import require
from atlas.config.arguments import names, read_settings, run_command

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 20  # lines on the screen
SHORTEST = 15  # seconds in which a part can give anything
SLOWER = 3  # the interpreter beside a GPU
ALL = "all.txt"


class Part(NamedTuple):
    minutes: float  # at most
    commands: tuple[str, ...]  # after `python -m`
    small: tuple[str, ...]  # the same on a CPU


SPEED = "experiments.speed device=cuda folder={own} rounds=3"
SMALL_SPEED = "experiments.speed device=cpu model=tiny rounds=1 folder={own}"
QUIET = "niah=off logger=none rollback=off calibration=off device=cuda"
TINY = "niah=off data=stdlib logger=none rollback=off calibration=off device=cpu device.precision=bf16 model.width=32"
TINY += " model.layers=1 model.heads=2 model.memory.hidden=16 model.feedforward=32 train.batch_size=1 train.sequence=64"
TINY += " chunk_size.shard=32 chunk_size.global_size=32"
# The tests compile some hundred kernels: side by side. Another version of PyTorch may have other warnings.
TESTS = "pytest -q tests/gpu -n 8 -W default --durations=5"
PARTS = {  # in order of value
    "machine": Part(1, ("experiments.gpu.machine",), ("experiments.gpu.machine device=cpu size=64",)),
    "tests": Part(4, (TESTS,), ("pytest -q tests/triton -k test_gd[16 -W default",)),
    "speed": Part(
        4,
        (
            f"{SPEED} model=atlas_60m parts=contexts contestants=transformer,gd_c16,gd_c64 contexts=2048,8192,32768",
            f"{SPEED} model=small parts=whole contestants=transformer,gd_c16,gd_c16_torch,gd_c64 batch=8",
        ),
        (f"{SMALL_SPEED} parts=whole contestants=transformer,gd_c16",),
    ),
    "graph": Part(
        2.5,
        tuple(f"experiments.gpu.step_graph model={model} chunk_size=c16 {QUIET}" for model in ("small", "atlas_60m")),
        (f"experiments.gpu.step_graph steps=3 {TINY}",),
    ),
    "scan": Part(
        2.5,
        ("experiments.gpu.scan",),
        ("experiments.gpu.scan device=cpu rows=2 chunks=16 tokens=32 width=16 repeats=1",),
    ),
    "profile": Part(
        2.5,
        tuple(
            f"experiments.gpu.profile model={model} chunk_size=c16 {QUIET} device.kernels={kernels}"
            for model, kernels in (("atlas_60m", "auto"), ("small", "auto"), ("small", "torch"))
        ),
        tuple(f"experiments.gpu.profile {TINY} device.kernels={kernels}" for kernels in ("triton", "torch")),
    ),
    "sharded": Part(
        2,
        (f"{SPEED} model=small parts=whole contestants=gd_c8_unsharded,gd_c64 batch=8",),
        (f"{SMALL_SPEED} parts=whole contestants=gd_c8_unsharded,gd_c64",),
    ),
    "training": Part(
        3,
        tuple(
            f"atlas.train model=small train.steps=300 logger=none device=cuda device.kernels={kernels} "
            f"hydra.run.dir={{own}}/{kernels}"
            for kernels in ("auto", "torch")
        ),
        tuple(
            f"atlas.train {TINY} train.steps=2 device.kernels={kernels} hydra.run.dir={{own}}/{kernels}"
            for kernels in ("triton", "torch")
        ),
    ),
    "decode": Part(
        2,
        ("experiments.gpu.decode",),
        ("experiments.gpu.decode device=cpu model=tiny contexts=128,256 tokens=2 repeats=1",),
    ),
    "products": Part(
        1,
        ("experiments.gpu.products",),
        ("experiments.gpu.products device=cpu rows=2 tokens=40 width=16 repeats=1",),
    ),
    "compile": Part(
        4,
        (
            f"experiments.gpu.step_graph model=small chunk_size=c16 {QUIET} device.compile=true",
            f"{SPEED} model=atlas_60m parts=contexts "
            "contestants=transformer,gd_c16 contexts=2048 tokens=32768 compile=true",
        ),
        (f"experiments.gpu.step_graph steps=2 {TINY} device.precision=fp32 device.compile=true",),
    ),
    "long": Part(
        2,
        (f"{SPEED} model=small parts=contexts contestants=transformer,gd_c16 contexts=131072 tokens=131072",),
        (f"{SMALL_SPEED} parts=contexts contestants=gd_c16 contexts=512",),
    ),
    "registers": Part(
        3,
        ("experiments.gpu.registers", "experiments.gpu.registers kernels=gd chunks=16 warps=4"),
        ("experiments.gpu.registers kernels=products",),
    ),
}


@dataclass(frozen=True)
class Options:
    folder: str = ""
    parts: str = ",".join(PARTS)
    minutes: float = 30.0
    rehearse: str = "false"

    def __post_init__(self) -> None:
        require(bool(self.folder), "folder", self.folder, "the name of a new folder")
        for part in names(self.parts):
            require(part in PARTS, "parts", part, f"among {', '.join(PARTS)}")
        require(self.minutes > 0, "minutes", self.minutes, "> 0")
        require(self.rehearse in ("true", "false"), "rehearse", self.rehearse, "true or false")
        on_gpu = self.rehearse == "true" or torch.cuda.is_available()
        require(on_gpu, "rehearse", self.rehearse, "true here: no GPU was found")


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    folder, rehearse = Path(options.folder).resolve(), options.rehearse == "true"
    require(not folder.exists(), "folder", folder, "the name of a new folder")
    folder.mkdir(parents=True)
    end = time.monotonic() + 60 * options.minutes
    failed: list[str] = []
    for number, name in enumerate(names(options.parts), start=1):
        part, began = PARTS[name], time.monotonic()
        seconds = min(60 * part.minutes * (SLOWER if rehearse else 1), end - began)
        own = folder / name  # what its commands write besides
        commands = [command.format(own=own) for command in (part.small if rehearse else part.commands)]
        if any(str(own) in command for command in commands):
            own.mkdir()
        output = folder / f"{number}-{name}.txt"
        # A kernel is compiled where no interpreter is asked for.
        interpreted = {"TRITON_INTERPRET": "1"} if rehearse and name != "registers" else {}
        ended = run(commands, output, seconds, interpreted) if seconds >= SHORTEST else "not begun, no time was left"
        failed += [] if ended == "done" else [name]
        head = f"{name}: {ended} in {time.monotonic() - began:.0f} s"
        text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
        with (folder / ALL).open("a", encoding="utf-8") as file:
            print(f"{head}\n{text}", file=file)
        shown = "\n".join(text.splitlines()[-SHOWN:])
        print(f"\n{head}, {output}\n{shown}", flush=True)
    print(
        f"\n{len(failed)} of {number} parts did not end well: {', '.join(failed)}"
        if failed
        else "\nall parts ended well"
    )
    return int(bool(failed))


def run(commands: Sequence[str], output: Path, seconds: float, environment: Mapping[str, str]) -> str:
    """One command after the other into a file; `done`, or what went wrong with the last one that failed."""
    deadline, ended = time.monotonic() + seconds, "done"
    with output.open("w", encoding="utf-8") as file:
        for command in commands:
            print(f"$ python -m {command}", file=file, flush=True)
            process = subprocess.Popen(
                [sys.executable, "-m", *command.split()],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,  # so that what it has started can be ended too
            )
            try:
                status = process.wait(timeout=max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                return f"stopped after {seconds:.0f} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if status:
                ended = f"exit status {status}"
    return ended


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no command outlives this one
    sys.exit(run_command(main, None, __doc__ or ""))
