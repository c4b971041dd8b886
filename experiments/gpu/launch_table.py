"""The table of launches in docs/gpu.md, between two markers: one step, chunk 16, bf16, one row.

python -m experiments.gpu.launch_table

Writes it there; a test counts `tiny` again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atlas
from atlas.config.arguments import run_command
from experiments.gpu.launches import count

DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu.md"
BEGIN, END = "<!-- python -m experiments.gpu.launch_table -->", "<!-- end -->"
MODELS, KERNELS = ("tiny", "atlas_60m"), ("torch", "auto")


def row(model: str, kernels: str) -> str:
    of = [f"model={model}", "chunk_size=c16", "train.batch_size=1", f"device.kernels={kernels}"]
    whole = count(atlas.compose(of)).whole
    name = f"{model}, `device.kernels=torch`" if kernels == "torch" else model
    return f"| {name} | {whole.total:,} | {whole.waits.total()} | {whole.copies} |"


def main(_: list[str]) -> int:
    head = "| | launches | waits for the device | copies that the host waits for |", "|---|---|---|---|"
    lines = [*head, *(row(model, kernels) for model in MODELS for kernels in KERNELS)]
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    DOCUMENT.write_text("\n".join([f"{before}{BEGIN}", *lines, f"{END}{rest.partition(END)[2]}"]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
