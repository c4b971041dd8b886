"""The causal products of the Q-K projection alone: PyTorch's operations beside the Triton kernels, and their agreement.

python -m experiments.gpu.products [device=cuda] [rows=64,384] [tokens=2048] [width=64]

On a CPU the kernels run in triton's interpreter (TRITON_INTERPRET=1): times then say nothing, agreement does.
Errors are ||ours - exact|| / ||exact|| of all outputs and of all gradients, exact in float64.
Prints the table and writes nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from atlas.config import Kernels, require
from atlas.config.arguments import read_settings, run_command
from atlas.kernels import gpu
from atlas.ops.qk_projection import torch as plain
from atlas.ops.qk_projection import triton
from experiments.gpu.options import integers, require_device, require_positive
from experiments.gpu.scan import WARM_UPS, error, inputs
from experiments.speed.race import seconds_of


@dataclass(frozen=True)
class Options:
    device: str = "cuda"
    rows: str = "64,384"
    tokens: int = 2048
    width: int = 64
    repeats: int = 10

    def __post_init__(self) -> None:
        require_device(self.device, interpreter=True)
        integers("rows", self.rows)
        require_positive(tokens=self.tokens, repeats=self.repeats)
        require(self.width in triton.WIDTHS, "width", self.width, f"one of {', '.join(map(str, triton.WIDTHS))}")


def gradients(form: object, given: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [part.detach().requires_grad_() for part in given]
    out = form.causal_products(*leaves)  # type: ignore[attr-defined]
    return list(out), list(torch.autograd.grad(out[0].square().sum(), leaves))


def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    gpu.use(Kernels.triton)
    print("| rows | kernels | both passes us | error outputs | gradients |")
    print("|---|---|---|---|---|")
    for rows in integers("rows", options.rows):
        _, _, query, key, *_ = inputs(rows, options.tokens, options.width, device)
        given = [torch.eye(options.width, device=device).repeat(rows, 1, 1), query, key]
        exact = gradients(plain, [part[:2].cpu().double() for part in given])
        for name, form in (("torch", plain), ("triton", triton)):
            found = gradients(form, given)
            errors = [error([part[:2] for part in ours], theirs) for ours, theirs in zip(found, exact, strict=True)]
            step = partial(gradients, form, given)
            for _ in range(WARM_UPS):
                step()
            spent = 1e6 * median(seconds_of(step, device) for _ in range(options.repeats))
            print(f"| {rows} | {name} | {spent:.0f} | {errors[0]:.1e} | {errors[1]:.1e} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
