"""The memory's scan alone: PyTorch's operations beside the Triton kernels, forward and backward, and their agreement.

python -m experiments.gpu.scan [device=cuda] [rows=64,192,384] [chunks=16,64] [tokens=2048] [width=64] [warps=4,8]

On a CPU the kernels run in triton's interpreter (TRITON_INTERPRET=1): times then say nothing, agreement does.
Inputs are random. Errors are ||ours - exact|| / ||exact|| of all outputs and of all gradients, exact in float64.
Prints the table and writes nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import TRITON_WIDTHS, Kernels, require
from atlas.config.arguments import read_settings, run_command
from atlas.kernels import gpu
from atlas.ops.chunk_scan import Scan, open_state
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.rules.gd import GradientDescent
from atlas.ops.whole_chunks import triton_scan
from experiments.gpu.options import integers, require_device, require_positive
from experiments.speed.race import seconds_of

WARM_UPS = 3
NORM_MAX = 8.0
POWERS = (1, 2, 4, 8, 16, 32)  # warps of a program


@dataclass(frozen=True)
class Options:
    device: str = "cuda"
    rows: str = "64,192,384"
    chunks: str = "16,64"
    tokens: int = 2048
    width: int = 64
    warps: str = "4,8"
    repeats: int = 10

    def __post_init__(self) -> None:
        require_device(self.device, interpreter=True)
        integers("rows", self.rows)
        for chunk in integers("chunks", self.chunks):
            require(self.tokens >= chunk, "tokens", self.tokens, f">= the chunk of {chunk}")
        integers("warps", self.warps, POWERS)
        require_positive(tokens=self.tokens, repeats=self.repeats)
        require(self.width in TRITON_WIDTHS, "width", self.width, f"one of {', '.join(map(str, TRITON_WIDTHS))}")


def inputs(rows: int, tokens: int, width: int, device: torch.device) -> list[Tensor]:
    """W1, W23, and the fields of the tokens but for the controls; keys and queries of length 1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    query, key = (F.normalize(normal(tokens, width), dim=-1) for _ in range(2))
    down, up = 0.1 * normal(width, width), normal(2 * width, width) * (4 / width) ** 0.25
    rate = 0.1 * torch.rand(rows, tokens, generator=generator)
    return [part.to(device) for part in (down, up, query, key, normal(tokens, width), query, key, rate)]


def run(given: list[Tensor], chunk: int) -> list[Tensor]:
    """Outputs and end weights."""
    down, up, *fields = given
    tokens = ChunkInputs(*fields, controls=fields[-1].new_empty(*fields[-1].shape, 0))
    scan = Scan(GradientDescent(), chunk, NORM_MAX, read_at_start=False)
    half = down.dtype is torch.float32
    with torch.autocast(down.device.type, torch.bfloat16, enabled=half):
        out, state = scan(open_state(scan.rule, FastWeights(down, up)), tokens)
    return [out, *state.start]


def gradients(given: list[Tensor], chunk: int) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [part.detach().requires_grad_() for part in given]
    out = run(leaves, chunk)
    return out, list(torch.autograd.grad(out[0].square().sum(), leaves))


def error(ours: list[Tensor], exact: list[Tensor]) -> float:
    flat, wanted = (torch.cat([part.detach().double().flatten().cpu() for part in parts]) for parts in (ours, exact))
    return float((flat - wanted).norm() / wanted.norm())


def timed(given: list[Tensor], chunk: int, repeats: int) -> tuple[float, float]:
    """Microseconds of the forward pass, and of both: medians."""
    device, found = given[0].device, []
    for step in (lambda: run(given, chunk), lambda: gradients(given, chunk)):
        for _ in range(WARM_UPS):
            step()
        found.append(1e6 * median(seconds_of(step, device) for _ in range(repeats)))
    return found[0], found[1]


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    device = torch.device(options.device)
    print("| rows | chunk | kernels | forward us | both us | us per chunk, both | error outputs | gradients |")
    print("|---|---|---|---|---|---|---|---|")
    for rows in integers("rows", options.rows):
        given = inputs(rows, options.tokens, options.width, device)
        for chunk in integers("chunks", options.chunks):
            gpu.use(Kernels.torch)
            exact = gradients([part[:2].cpu().double() for part in given], chunk)
            forms = [(Kernels.torch, 0), *((Kernels.triton, warps) for warps in integers("warps", options.warps))]
            for kernels, warps in forms:
                gpu.use(kernels)
                with patch.object(triton_scan, "WARPS", warps or triton_scan.WARPS):
                    found = gradients(given, chunk)
                    errors = [
                        error([part[:2] for part in ours], theirs) for ours, theirs in zip(found, exact, strict=True)
                    ]
                    times = timed(given, chunk, options.repeats)
                name = f"triton, {warps} warps" if warps else "torch"
                each = times[1] * chunk / options.tokens
                cells = f"{times[0]:.0f}", f"{times[1]:.0f}", f"{each:.1f}", f"{errors[0]:.1e}", f"{errors[1]:.1e}"
                print(f"| {rows} | {chunk} | {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
