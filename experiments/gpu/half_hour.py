"""All that is worth knowing of a GPU, in half an hour: first whether it is right, then how fast it is.

python -m experiments.gpu.half_hour folder=FOLDER [parts=machine,tests,...] [rehearse=true]

Each part is a command of its own with a time limit. It writes FOLDER/<number>-<part>.txt; its last lines go to the
screen. A part that fails or takes too long does not stop the next. `rehearse=true` runs the same commands small on a
CPU, with the Triton kernels in their interpreter. Exit status: 0 all parts ended well, 1 not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from atlas.config import require
from atlas.config.arguments import names, read_settings, run_command

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 20  # lines on the screen


class Part(NamedTuple):
    minutes: float
    commands: tuple[str, ...]  # after `python -m`
    small: tuple[str, ...]  # the same on a CPU


SPEED = "experiments.speed device=cuda folder={folder} rounds=3"
SMALL_SPEED = "experiments.speed device=cpu model=tiny rounds=1 folder={folder}"
QUIET = "niah=off logger=none rollback=off calibration=off device=cuda"
TINY = "niah=off data=stdlib logger=none rollback=off calibration=off device=cpu device.precision=bf16 model.width=32"
TINY += " model.layers=1 model.heads=2 model.memory.hidden=16 model.feedforward=32 train.batch_size=1 train.sequence=64"
TINY += " chunk_size.shard=32 chunk_size.global_size=32"
PARTS = {
    "machine": Part(
        3,
        (
            "experiments.gpu.machine",
            "experiments.gpu.registers",
            "experiments.gpu.registers kernels=gd chunks=16 warps=4",
        ),
        ("experiments.gpu.machine device=cpu size=64",),
    ),
    "tests": Part(4, ("pytest -q tests/gpu",), ("pytest -q tests/triton -k test_gd[16",)),
    "scan": Part(
        4, ("experiments.gpu.scan",), ("experiments.gpu.scan device=cpu rows=2 chunks=16 tokens=32 width=16 repeats=1",)
    ),
    "products": Part(
        1,
        ("experiments.gpu.products",),
        ("experiments.gpu.products device=cpu rows=2 tokens=40 width=16 repeats=1",),
    ),
    "profile": Part(
        3,
        tuple(
            f"experiments.gpu.profile model={model} chunk_size=c16 {QUIET} device.kernels={kernels}"
            for model in ("atlas_60m", "small")
            for kernels in ("torch", "auto")
        ),
        tuple(f"experiments.gpu.profile {TINY} device.kernels={kernels}" for kernels in ("torch", "triton")),
    ),
    "graph": Part(
        3,
        tuple(f"experiments.gpu.step_graph model={model} chunk_size=c16 {QUIET}" for model in ("small", "atlas_60m")),
        (f"experiments.gpu.step_graph steps=3 {TINY}",),
    ),
    "speed": Part(
        5,
        (
            f"{SPEED} model=small parts=whole contestants=transformer,gd_c16,gd_c16_torch,gd_c64 batch=8",
            f"{SPEED} model=atlas_60m parts=contexts contestants=transformer,gd_c16,gd_c64 contexts=2048,8192,32768",
        ),
        (f"{SMALL_SPEED} parts=whole contestants=transformer,gd_c16",),
    ),
    "training": Part(
        3,
        tuple(
            f"atlas.train model=small train.steps=300 logger=none device=cuda device.kernels={kernels} "
            f"hydra.run.dir={{folder}}/training-{kernels}"
            for kernels in ("auto", "torch")
        ),
        tuple(
            f"atlas.train {TINY} train.steps=2 device.kernels={kernels} hydra.run.dir={{folder}}/training-{kernels}"
            for kernels in ("triton", "torch")
        ),
    ),
    "decode": Part(
        2,
        ("experiments.gpu.decode",),
        ("experiments.gpu.decode device=cpu model=tiny contexts=128,256 tokens=2 repeats=1",),
    ),
    "compile": Part(
        2,
        (f"experiments.gpu.step_graph model=small chunk_size=c16 {QUIET} device.compile=true",),
        (f"experiments.gpu.step_graph steps=2 {TINY} device.compile=true",),
    ),
    "long": Part(
        2,
        (f"{SPEED} model=small parts=contexts contestants=transformer,gd_c16 contexts=131072 tokens=131072",),
        (f"{SMALL_SPEED} parts=contexts contestants=gd_c16 contexts=512",),
    ),
}


@dataclass(frozen=True)
class Options:
    folder: str = ""
    parts: str = ",".join(PARTS)
    rehearse: str = "false"

    def __post_init__(self) -> None:
        require(bool(self.folder), "folder", self.folder, "the name of a new folder")
        for part in names(self.parts):
            require(part in PARTS, "parts", part, f"among {', '.join(PARTS)}")
        require(self.rehearse in ("true", "false"), "rehearse", self.rehearse, "true or false")


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    folder, rehearse = Path(options.folder), options.rehearse == "true"
    require(not folder.exists(), "folder", folder, "the name of a new folder")
    folder.mkdir(parents=True)
    failed: list[str] = []
    for number, name in enumerate(names(options.parts), start=1):
        part = PARTS[name]
        began = time.monotonic()
        commands = [command.format(folder=folder.resolve()) for command in (part.small if rehearse else part.commands)]
        output = folder / f"{number}-{name}.txt"
        ended = run(commands, output, 60 * part.minutes, {"TRITON_INTERPRET": "1"} if rehearse else {})
        failed += [] if ended == "done" else [name]
        print(f"\n{name}: {ended} in {time.monotonic() - began:.0f} s, {output}", flush=True)
        print("\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:]), flush=True)
    print(f"\n{len(failed)} of {number} parts failed: {', '.join(failed)}" if failed else "\nall parts ended well")
    return int(bool(failed))


def run(commands: Sequence[str], output: Path, seconds: float, environment: Mapping[str, str]) -> str:
    """One command after the other into a file; `done`, or what went wrong with the last one that failed."""
    deadline, ended = time.monotonic() + seconds, "done"
    with output.open("w", encoding="utf-8") as file:
        for command in commands:
            print(f"$ python -m {command}", file=file, flush=True)
            try:
                done = subprocess.run(
                    [sys.executable, "-m", *command.split()],
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=max(deadline - time.monotonic(), 1),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return f"stopped after {seconds:.0f} s"
            if done.returncode:
                ended = f"exit status {done.returncode}"
    return ended


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
