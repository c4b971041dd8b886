"""Registers and spills of the Triton kernels, compiled for an H100 (sm_90) on any Linux machine, without a GPU.

python -m experiments.gpu.registers [warps=8] [chunks=16,64] [widths=64] [momentum=false]

A row for each kernel: registers of a thread (255 at most), bytes spilled to memory, shared memory, seconds to compile.
Needs the extra `triton`, and TRITON_INTERPRET must not be set. Prints the table and writes nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from atlas.config import require
from atlas.config.arguments import read_settings, run_command
from atlas.kernels import gpu
from atlas.ops.whole_chunks.triton import WARPS, Variant

TARGET = 90  # compute capability, times 10


@dataclass(frozen=True)
class Options:
    warps: int = WARPS
    chunks: str = "16,64"
    widths: str = "64"
    momentum: str = "false"

    def __post_init__(self) -> None:
        require(self.momentum in ("true", "false"), "momentum", self.momentum, "true or false")
        require(not gpu.interpreted(), "TRITON_INTERPRET", 1, "unset: the interpreter compiles nothing")


class Compiled(NamedTuple):
    registers: int
    spilled_bytes: int
    shared_bytes: int
    seconds: float


def compiled(variant: Variant, *, backward: bool, warps: int) -> Compiled:
    """Compile one kernel of a variant, as the device would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from atlas.kernels.triton_scan import scan_backward, scan_forward

    kernel = scan_backward if backward else scan_forward
    constants: dict[str, Any] = variant.constants | ({} if backward else {"KEEP": True})
    types = {name: _type(name) for name in kernel.arg_names if name not in constants}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(types) if _aligned(name)}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
    began = time.perf_counter()
    found = triton.compile(source, target=GPUTarget("cuda", TARGET, 32), options={"num_warps": warps})
    seconds = time.perf_counter() - began
    return Compiled(*_assembled(found.asm["ptx"]), found.metadata.shared, seconds)


def _type(name: str) -> str:
    if name in ("states", "momenta"):
        return "*bf16"
    if name == "chunks" or name.endswith(("_row", "_token")):
        return "i32"
    return "fp32" if name.startswith("bound_") else "*fp32"


def _aligned(name: str) -> bool:
    """Pointers, and strides that are multiples of a width."""
    return _type(name).startswith("*") or (name.endswith(("_row", "_token")) and not name.startswith("rate_"))


def _assembled(ptx: str) -> tuple[int, int]:
    """Registers and bytes spilled (stores), as ptxas tells them."""
    import triton

    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [
            str(assembler),
            "-v",
            f"--gpu-name=sm_{TARGET}a",
            str(source),
            "-o",
            str(source.with_suffix(".cubin")),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None
    assert spilled is not None
    return int(registers[1]), int(spilled[1])


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    print(f"sm_{TARGET}, {options.warps} warps, d = h = p\n")
    print("| kernel | width | chunk | registers | spilled bytes | shared KB | seconds |")
    print("|---|---|---|---|---|---|---|")
    for width in map(int, options.widths.split(",")):
        for chunk in map(int, options.chunks.split(",")):
            variant = Variant(chunk, width, width, width, True, options.momentum == "true", "bf16")
            for backward in (False, True):
                found = compiled(variant, backward=backward, warps=options.warps)
                name = f"{'momentum' if variant.momentum else 'gd'}, {'backward' if backward else 'forward'}"
                shared = f"{found.shared_bytes / 1024:.0f}"
                cells = name, width, chunk, found.registers, found.spilled_bytes, shared, f"{found.seconds:.0f}"
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
