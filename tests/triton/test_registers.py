"""The kernels compiled for an H100 need no more registers and memory than when they were last looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from atlas.kernels import gpu

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "experiments" / "gpu" / "REGISTERS.md"  # of the triton in constraints.txt
pytestmark = pytest.mark.skipif(
    not (gpu.interpreted() and find_spec("triton")), reason="needs triton: make triton, which compiles too"
)


def rows(text: str) -> dict[tuple[str, ...], list[int]]:
    """Kernel, width, chunk, warps and GPU -> registers, spilled bytes and shared bytes."""
    found = re.findall(r"^\| ([\w ]+, \w+) \|" + r" ([\d,]+) \|" * 6 + r" ([\w ]+):", text, re.MULTILINE)
    return {(*row[:4], row[7]): [int(number.replace(",", "")) for number in row[4:7]] for row in found}


@pytest.mark.parametrize("kernels", ["gd", "momentum", "products"])
def test_no_kernel_needs_more_than_the_table_says(kernels: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "experiments.gpu.registers", "chunks=16", f"kernels={kernels}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    committed, found = rows(TABLE.read_text(encoding="utf-8")), rows(done.stdout)
    assert len(found) == (2 if kernels == "products" else 4)  # of local memories and of the global one
    for kernel, numbers in found.items():
        more = [ours > allowed for ours, allowed in zip(numbers, committed[kernel], strict=True)]
        assert not any(more), f"{kernel}: {numbers}, {committed[kernel]} in the table"
