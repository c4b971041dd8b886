"""Registers and spills of the Triton kernels, compiled for an H100 (sm_90) on any Linux machine, without a GPU.

python -m experiments.gpu.registers [kernels=gd,momentum,products] [chunks=16,64] [widths=64] [warps=8] [capability=90]

A row for each kernel: registers of a thread (255 at most) and bytes spilled to memory, of an H100 alone; shared memory,
and whether a GPU of that capability (80, 89, 90) has it; seconds to compile. The global memory is read in blocks of 128
tokens.
Needs the extra `triton`, and TRITON_INTERPRET must not be set. Prints the table and writes nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from atlas.config import TRITON_CHUNK, require
from atlas.config.arguments import names, read_settings, run_command
from atlas.kernels import gpu
from atlas.ops.qk_projection import triton as products
from atlas.ops.whole_chunks.triton_scan import WARPS, Variant
from experiments.gpu.options import integers

H100 = 90  # compute capability, times 10
KERNELS = "gd", "momentum", "products"
WIDTHS = (16, 32, 64, 128)  # 128 is launched by no run (atlas/config/run.py): this command says why
POWERS = (1, 2, 4, 8, 16, 32)  # warps of a program
GPUS = {  # by compute capability, times 10: name, and bytes of shared memory that a program may have
    80: ("A100", 166_912),
    89: ("L4 and RTX 4090", 101_376),
    H100: ("H100", 232_448),
}


@dataclass(frozen=True)
class Options:
    warps: int = 0  # 0: as they are launched
    chunks: str = "16,64"
    widths: str = "64"
    kernels: str = ",".join(KERNELS)
    capability: str = str(H100)

    def __post_init__(self) -> None:
        for name in names(self.kernels):
            require(name in KERNELS, "kernels", name, f"among {', '.join(KERNELS)}")
        require(not gpu.interpreted(), "TRITON_INTERPRET", 1, "unset: the interpreter compiles nothing")
        require(bool(names(self.kernels)), "kernels", self.kernels, f"among {', '.join(KERNELS)}")
        integers("chunks", self.chunks)
        integers("widths", self.widths, WIDTHS)
        require(self.warps in (0, *POWERS), "warps", self.warps, f"0 or one of {', '.join(map(str, POWERS))}")
        integers("capability", self.capability, tuple(GPUS))


class Compiled(NamedTuple):
    registers: int  # 0: not assembled
    spilled_bytes: int
    shared_bytes: int
    seconds: float


def launched(name: str, width: int, chunk: int, *, prefix: bool = True) -> dict[str, tuple[Any, dict[str, Any]]]:
    """The kernels of a name, with what they are compiled for. `prefix`: of local memories, else of the global one."""
    from atlas.kernels import triton_products
    from atlas.kernels.triton_scan import scan_forward
    from atlas.kernels.triton_scan_backward import scan_backward

    if name == "products":
        constants = products.constants(width)
        return {
            "forward": (triton_products.products_forward, constants),
            "backward": (triton_products.products_backward, constants),
        }
    constants = Variant(chunk, width, width, width, prefix, name == "momentum", "bf16").constants
    return {"forward": (scan_forward, {**constants, "KEEP": True}), "backward": (scan_backward, constants)}


def compiled(kernel: Any, constants: dict[str, Any], warps: int, target: int = H100) -> Compiled:
    """Compile a kernel, as the device would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: _type(name) for name in kernel.arg_names if name not in constants}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(types) if _aligned(name)}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants, aligned)
    began = time.perf_counter()
    found = triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps})
    seconds = time.perf_counter() - began
    # For the others ptxas tells of few registers and large spills, which nobody has looked into.
    assembled = _assembled(found.asm["ptx"]) if target == H100 else (0, 0)
    return Compiled(*assembled, found.metadata.shared, seconds)


def _type(name: str) -> str:
    if name in ("states", "momenta"):
        return "*bf16"
    if name in ("chunks", "count") or name.endswith(("_row", "_token")):
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
            f"--gpu-name=sm_{H100}a",
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
    limits = ", ".join(f"{name} (sm_{number}) {most:,}" for number, (name, most) in GPUS.items())
    print(f"d = h = p. Shared memory that a program may have, in bytes: {limits}\n")
    print("| kernel | width | chunk | warps | registers | spilled bytes | shared bytes | GPU | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, width in product(names(options.kernels), integers("widths", options.widths)):
        reads = [(products.TILE, True)]
        if name != "products":
            reads = [*((chunk, True) for chunk in integers("chunks", options.chunks)), (TRITON_CHUNK, False)]
        warps = options.warps or (products.WARPS if name == "products" else WARPS)
        for (chunk, prefix), target in product(reads, integers("capability", options.capability)):
            for way, (kernel, constants) in launched(name, width, chunk, prefix=prefix).items():
                found = compiled(kernel, constants, warps, target)
                gpu_name, most = GPUS[target]
                fits = "fits" if found.shared_bytes <= most else "does not fit"
                assembled = (found.registers, found.spilled_bytes) if found.registers else ("-", "-")
                needs = *assembled, f"{found.shared_bytes:,}", f"{gpu_name}: {fits}"
                of = name if prefix else f"{name} of the global memory"
                cells = f"{of}, {way}", width, chunk, warps, *needs, f"{found.seconds:.0f}"
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
