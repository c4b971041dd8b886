"""How far float32 gradients through the inner loop are from float64 ones, by rate, rule, memory and keys.

python -m experiments.precision

Takes no settings. Prints the table and writes it to RESULTS.md beside this file, in some minutes on one core.

Legend: N rows, T tokens, C chunk, d head width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from atlas.config import Kernels, MemoryConfig, Rule, require
from atlas.config.arguments import run_command
from atlas.kernels.library import use
from atlas.ops.chunk_scan import Scan, open_state
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.rules import RULES

WIDTH, ROWS, SEEDS, ALLOWED = 64, 2, 2, 0.01
KEYS = {"all differ": 1, "4 equal": 4, "16 equal": 16, "128 equal": 128}  # keys in a row that are the same
SPREAD = 0.01  # standard deviation of the rates over eta: sums of equal rates may be just where a limit begins
ETA = 0.3  # of a token, for the rules whose step has the length rho


class Memory(NamedTuple):
    name: str
    tokens: int
    chunk: int
    read_at_start: bool = False
    curvature_max: float = 0.0
    curvature_max_local: float = 0.0

    @property
    def limited(self) -> Memory:
        """With the default limit of the curvature."""
        key = "curvature_max" if self.read_at_start else "curvature_max_local"
        limit = getattr(MemoryConfig(), key)
        return self._replace(**{"name": f"the same, `{key}={limit:g}`", key: limit})


LOCAL = Memory("local, chunk 16, 512 tokens", 512, 16)
LONG = Memory("local, chunk 16, 2,048 tokens", 2048, 16)
GLOBAL = Memory("global, chunk 128, 8,192 tokens", 8192, 128, read_at_start=True)


class Part(NamedTuple):
    """A table of RESULTS.md."""

    rate: str  # what its columns are
    rules: tuple[Rule, ...]
    memories: tuple[Memory, ...]
    rates: tuple[float, ...]


BY_ETA = Part(
    "the inner rate eta",
    (Rule.gd, Rule.momentum, Rule.omega),
    (
        Memory("local, chunk 1, 128 tokens", 128, 1),
        LOCAL,
        LOCAL.limited,
        LONG,
        LONG.limited,
        Memory("global, chunk 128, 1,024 tokens", 1024, 128, read_at_start=True),
        GLOBAL,
        GLOBAL.limited,
    ),
    (0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 4.0),
)
BY_RHO = Part(
    f"rho, the length of an orthogonalised step; eta = {ETA:g}",
    (Rule.muon, Rule.atlas),
    (
        Memory("local, chunk 16, 128 tokens", 128, 16),
        LOCAL,
        LONG,
        GLOBAL,
    ),
    (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0),
)


def gradients(rule: Rule, memory: Memory, equal: int, rate: float, seed: int, dtype: torch.dtype) -> Tensor:
    """Of a random projection of all reads, by keys, values, queries and a random W_init, as one vector."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:  # the same numbers in both precisions
        return torch.randn(ROWS, *shape, generator=generator).to(dtype)

    query, key, value = (F.normalize(normal(memory.tokens, WIDTH), dim=-1) for _ in range(3))
    key = key[:, torch.arange(memory.tokens) // equal]
    down, up = normal(WIDTH, WIDTH) * WIDTH**-0.5, normal(2 * WIDTH, WIDTH) * (4 / WIDTH) ** 0.25
    leaves = [tensor.requires_grad_() for tensor in (query, key, value, down, up)]
    learner = RULES[rule](MemoryConfig(rule=rule))
    own = {"rho": rate} if rule in BY_RHO.rules else {}
    controls = torch.tensor([own.get(control.name, control.initial) for control in learner.controls], dtype=dtype)
    rates = (ETA if own else rate) * (1 + SPREAD * normal(memory.tokens))
    tokens = ChunkInputs(query, key, value, query, key, rates, controls.expand(ROWS, memory.tokens, -1))
    scan = Scan(
        learner,
        memory.chunk,
        MemoryConfig().weight_norm_max,
        memory.read_at_start,
        curvature_max=memory.curvature_max,
        curvature_max_local=memory.curvature_max_local,
    )
    curved, curved_local = memory.curvature_max > 0, memory.curvature_max_local > 0
    out, _ = scan(open_state(learner, FastWeights(down, up), curved=curved, curved_local=curved_local), tokens)
    found = torch.autograd.grad((out * normal(memory.tokens, WIDTH)).sum(), leaves)
    return torch.cat([gradient.flatten().double() for gradient in found])


def error(rule: Rule, memory: Memory, equal: int, rate: float) -> float:
    """Largest over the seeds of ||g32 - g64|| / ||g64||."""
    errors = []
    for seed in range(SEEDS):
        exact = gradients(rule, memory, equal, rate, seed, torch.float64)
        errors.append(float((gradients(rule, memory, equal, rate, seed, torch.float32) - exact).norm() / exact.norm()))
    return max(errors)


def table(part: Part) -> list[str]:
    """Its lines; printed as they come."""
    lines = [f"| rule | memory | keys | {' | '.join(f'{rate:g}' for rate in part.rates)} |"]
    lines += ["|---|---|---|" + "---|" * len(part.rates)]
    for rule, memory, (name, equal) in product(part.rules, part.memories, KEYS.items()):
        errors = [error(rule, memory, equal, rate) for rate in part.rates]
        cells = [f"{value:.0e}" if value <= ALLOWED else f"**{value:.0e}**" for value in errors]  # nan as well
        lines.append(f"| `{rule}` | {memory.name} | {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main(arguments: Sequence[str]) -> int:
    require(not arguments, "arguments", " ".join(arguments), "left out")
    use(Kernels.torch)
    lines = [
        "# Precision of gradients through the inner loop",
        "",
        "Written by `python -m experiments.precision`; do not edit. A cell is ||g32 - g64|| / ||g64||, the larger of",
        f"two seeds, in bold above {ALLOWED:.0%}. Unit keys, queries and values, d = h = {WIDTH}, random W_init, rates",
        f"spread by {SPREAD:.0%}, the rules' controls at their initial values. Keys: how many in a row are equal.",
    ]
    for part in (BY_ETA, BY_RHO):
        lines += ["", f"## Columns: {part.rate}", "", *table(part)]
    (Path(__file__).parent / "RESULTS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
