"""Time and memory of a decoded token after a short and after a long context.

python experiments/decoding/decoding.py [OVERRIDES of atlas.train]

The model is untrained; the overrides choose it, such as model=small or device.threads=2 (by default one thread).
Writes decoding.json and RESULTS.md beside this file, in some minutes with the default model. Exit status: 0 the rule of
README.md holds, 1 it does not, 2 refused.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import atlas
from atlas.config.arguments import run_command
from atlas.data.corpus import stdlib_corpus
from atlas.models.decoding import Sampling, choose, prefilled
from atlas.models.language_model import AtlasModel, ModelState
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.runs.environment import device_name, git_revision, versions

HERE = Path(__file__).parent
CONTEXTS = (1024, 16_384)
TOKENS = 128  # decoded in a round: whole chunks and shards of the small models, so that every round does the same
ROUNDS = 12
WARM_UP = 2  # rounds
ALLOWED = 0.10


@dataclass(frozen=True)
class Cost:
    """What a token costs after `context` tokens."""

    context: int
    grid: str  # trained chunks, or chunk 1
    milliseconds: float  # median over rounds
    noise: float  # of the rounds: quarter-quantile range over median
    state_bytes: int
    peak_bytes: int  # of a process that reads the context and decodes one round


def grids(plan: ChunkPlan) -> dict[str, ChunkPlan]:
    return {"trained": plan, "chunk 1": plan._replace(local=(1,) * len(plan.local))}


def text_tokens(context: int) -> tuple[Tensor, Tensor]:
    """The context [1, context], and the tokens after it [1, TOKENS]: an untrained model's own would all be the same."""
    text = torch.from_numpy(stdlib_corpus(0.1).validation[: context + TOKENS].astype(np.int64)).unsqueeze(0)
    return text[:, :context], text[:, context:]


@torch.no_grad()
def decode_round(model: AtlasModel, state: ModelState, plan: ChunkPlan, tokens: Tensor) -> tuple[float, ModelState]:
    """Seconds for the tokens [1, TOKENS] one at a time, with the choice of the one after each, and the state then."""
    began = time.perf_counter()
    for token in tokens.split(1, dim=1):
        out = model(token, state, plan=plan)
        state = out.state
        choose(out.logits[:, -1], Sampling(temperature=0), None)
    return time.perf_counter() - began, state


def state_bytes(state: ModelState) -> int:
    leaves = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


def build(overrides: Sequence[str]) -> AtlasModel:
    """The untrained model on the CPU, on as many threads as `device.threads` says; one by default."""
    config = atlas.compose(list(overrides))
    torch.set_num_threads(config.device.threads or 1)
    return atlas.build_model(config).eval()


@torch.no_grad()
def peak_bytes(overrides: Sequence[str], context: int) -> int:
    """Peak resident memory of this process, which is to be a fresh one: units of ru_maxrss are kB on Linux."""
    model = build(overrides)
    before, after = text_tokens(context)
    decode_round(model, prefilled(model, before, model.plan, MemoryMode.learn), model.plan, after)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(overrides: Sequence[str], context: int) -> int:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_bytes, overrides, context).result()


@torch.no_grad()
def measure(overrides: Sequence[str]) -> list[Cost]:
    model = build(overrides)
    texts = {context: text_tokens(context) for context in CONTEXTS}
    peaks = {context: in_fresh_process(overrides, context) for context in CONTEXTS}
    costs = []
    for grid, plan in grids(model.plan).items():
        states = {c: prefilled(model, texts[c][0], model.plan, MemoryMode.learn) for c in CONTEXTS}
        seconds: dict[int, list[float]] = {context: [] for context in CONTEXTS}
        for index in range(WARM_UP + ROUNDS):
            print(f"{grid}: round {index + 1} of {WARM_UP + ROUNDS}", flush=True)
            for context in CONTEXTS:
                spent, _after = decode_round(model, states[context], plan, texts[context][1])
                seconds[context].append(spent)
        for context in CONTEXTS:
            rounds = seconds[context][WARM_UP:]
            low, _, high = quantiles(rounds, n=4)
            milliseconds = 1000 * median(rounds) / TOKENS
            size = state_bytes(states[context])
            costs.append(Cost(context, grid, milliseconds, (high - low) / median(rounds), size, peaks[context]))
    return costs


def ratios(costs: Sequence[Cost]) -> dict[str, tuple[float, float]]:
    """Per grid: time and peak memory after the longest context over those after the shortest."""
    found = {}
    for grid in {cost.grid: None for cost in costs}:
        first, *_, last = [cost for cost in costs if cost.grid == grid]
        found[grid] = last.milliseconds / first.milliseconds, last.peak_bytes / first.peak_bytes
    return found


def holds(costs: Sequence[Cost]) -> bool:
    """The rule of README.md."""
    flat = all(abs(ratio - 1) <= ALLOWED for pair in ratios(costs).values() for ratio in pair)
    return flat and len({cost.state_bytes for cost in costs}) == 1


def table(costs: Sequence[Cost]) -> str:
    lines = ["| grid | context | ms per token | noise | state | peak of the process |", "|---" * 6 + "|"]
    for one in costs:
        size = f"{one.state_bytes:,} bytes | {one.peak_bytes / 2**20:,.0f} MiB"
        lines.append(f"| {one.grid} | {one.context} | {one.milliseconds:.2f} | {one.noise:.1%} | {size} |")
    return "\n".join(lines)


def write(costs: Sequence[Cost], overrides: Sequence[str], folder: Path) -> str:
    """decoding.json and RESULTS.md in `folder`; returns the verdict."""
    command = " ".join(["python experiments/decoding/decoding.py", *overrides])
    machine = device_name(torch.device("cpu"))  # with the threads that were used
    record = {
        "command": command,
        "machine": machine,
        "costs": [asdict(cost) for cost in costs],
        "git": git_revision(),
        "versions": versions(),
    }
    (folder / "decoding.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    told = [f"{grid}: time x{t:.3f}, peak x{peak:.3f}" for grid, (t, peak) in ratios(costs).items()]
    lengths = f"{CONTEXTS[-1]} tokens against {CONTEXTS[0]}"
    verdict = f"The rule {'holds' if holds(costs) else 'does NOT hold'}; {lengths}: {'; '.join(told)}."
    text = ["# Decoding: results", "", "Written by the command; do not edit.", ""]
    text += [f"`{command}`, revision {record['git'] or 'unknown'}, {machine}.", "", table(costs), "", verdict, ""]
    (folder / "RESULTS.md").write_text("\n".join(text), encoding="utf-8")
    return verdict


def main(overrides: Sequence[str], folder: Path = HERE) -> int:
    atlas.compose(list(overrides))
    costs = measure(overrides)
    print(f"{table(costs)}\n\n{write(costs, overrides, folder)}")
    return 0 if holds(costs) else 1


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
