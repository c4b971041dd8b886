"""What training on W devices keeps and sends, for models of 125 M to 7 B parameters, and how good the formulas are.

python -m experiments.scaling [KEY=VALUE ...]

  processes=1,2,3    the formulas are compared with what so many processes of this machine keep and send (gloo)
  rounds=0           steps of which one process and two ranks with a thread each are timed in turn: on a quiet machine
  flops=4e14         operations a second that a device reaches; an assumption: 40 % of what an H100 can do in bf16
  bandwidth=5e10     bytes a second that a device sends; an assumption: 400 Gbit/s
  tokens=16384       of a device in a step

Prints the tables and writes them to RESULTS.md beside this file, in about a minute without times. Exit status: 0 every
formula of bytes is within 10 % of what was measured, 1 not, 2 refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import atlas
from atlas.config import ParallelKind, RunConfig, require
from atlas.config.arguments import read_settings, run_command
from experiments.scaling.cost import (
    Backend,
    Shape,
    compute_seconds,
    context_efficiency,
    handed_bytes,
    kept_bytes,
    sent_bytes,
    shapes,
    whole_bytes,
)
from experiments.scaling.measure import kept_and_sent, on_ranks
from experiments.scaling.times import Times, of_two_ranks

ALLOWED, MOST, MOST_ROUNDS = 0.10, 64, 1000
RESULTS = Path(__file__).parent / "RESULTS.md"
DEVICES = (8, 64, 256, 1024)
CONTEXTS = (2, 4, 8)
DEPTHS = (2, 6)  # layers; the default model has 2
WAYS = ("one process", "two ranks, rows", "two ranks, a sequence cut")
# name -> layers, width, feed-forward width; heads of width 64, 32,000 ids, sequences of 4,096 tokens, two to a device
SIZES = {
    "125 M": (12, 768, 1408),
    "350 M": (24, 1024, 1792),
    "1.3 B": (24, 2048, 3584),
    "2.7 B": (32, 2560, 4480),
    "7 B": (32, 4096, 7168),
}
SMALL = ["model=tiny", "data=stdlib", "niah=off", "calibration=off", "logger=none", "device=cpu", "device.threads=1"]


@dataclass(frozen=True)
class Options:
    processes: str = "1,2,3"
    rounds: int = 0
    flops: float = 4e14
    bandwidth: float = 5e10
    tokens: int = 16384

    def __post_init__(self) -> None:
        sound = all(count.isdecimal() and 1 <= int(count) <= MOST for count in self.processes.split(","))
        require(sound, "processes", self.processes, f"numbers in [1, {MOST}], such as 1,2,3")
        require(0 <= self.rounds <= MOST_ROUNDS, "rounds", self.rounds, f"in [0, {MOST_ROUNDS}] (0 = no times)")
        for key in ("flops", "bandwidth", "tokens"):
            require(0 < getattr(self, key) < inf, key, getattr(self, key), "in (0, inf)")

    @property
    def counts(self) -> list[int]:
        return [int(count) for count in self.processes.split(",")]


def sized(layers: int, width: int, feedforward: int) -> RunConfig:
    shape = [f"model.layers={layers}", f"model.width={width}", f"model.feedforward={feedforward}"]
    return atlas.compose(["model=atlas_125m", *shape, f"model.heads={width // 64}", "model.vocabulary=32000"])


def checks(counts: Sequence[int]) -> tuple[list[list[str]], bool]:
    """Rows of the comparison with this machine, and whether all of them are within what is allowed."""
    rows, sound = list[list[str]](), True
    for world in counts:
        for kind in (ParallelKind.ddp, ParallelKind.fsdp)[: min(world, 2)]:
            batch = [f"train.batch_size={2 * world}", "train.sequence=512", f"parallel.kind={kind}"]
            rows.append([kind.value, str(world)])
            sound &= _compare(atlas.compose([*SMALL, *batch]), world, rows[-1])
        if world > 1:
            cut = ["train.batch_size=2", f"train.sequence={128 * world}", f"parallel.context={world}"]
            rows.append(["ddp, a sequence cut", str(world)])
            sound &= _compare(atlas.compose([*SMALL, *cut]), world, rows[-1])
    return rows, sound


def _compare(config: RunConfig, world: int, row: list[str]) -> bool:
    """Add to the row what is kept and what is sent; whether both formulas are good enough."""
    parameters, kind, found = shapes(config), config.parallel.kind, on_ranks(world, kept_and_sent, config)
    sent = sent_bytes(parameters, kind, world, Backend.gloo) + handed_bytes(config, config.parallel.context)
    pairs = [
        (kept_bytes(parameters, kind, world), max(one.kept for one in found)),
        (sent, max(one.sent for one in found)),
    ]
    errors = [_error(formula, real) for formula, real in pairs]
    row += [f"{_mega(a)} | {_mega(b)} | {error:+.1%}" for (a, b), error in zip(pairs, errors, strict=True)]
    return all(abs(error) <= ALLOWED for error in errors)


def _error(formula: float, real: float) -> float:
    return 0.0 if formula == real else formula / real - 1


def forecast(chosen: Options) -> list[list[str]]:
    rows = []
    for name, (layers, width, feedforward) in SIZES.items():
        config = sized(layers, width, feedforward)
        parameters = shapes(config)
        count = sum(one.elements for one in parameters)
        compute = compute_seconds(config, chosen.tokens, chosen.flops)
        for world in DEVICES:
            cells = [f"{count / 1e6:,.0f} M", str(world)]
            for kind in (ParallelKind.ddp, ParallelKind.fsdp):
                cells += _of(kind, parameters, world, layers, compute, chosen)
            rows.append([name, *cells])
    return rows


def _of(
    kind: ParallelKind, parameters: Sequence[Shape], world: int, layers: int, compute: float, chosen: Options
) -> list[str]:
    whole = whole_bytes(parameters, layers) if kind is ParallelKind.fsdp else 0
    sent = sent_bytes(parameters, kind, world, Backend.nccl)
    sending = sent / chosen.bandwidth
    kept = (kept_bytes(parameters, kind, world) + whole) / 2**30
    return [f"{kept:.2f}", f"{sent / 2**30:.2f}", f"{max(compute, sending):.3f} to {compute + sending:.3f}"]


def contexts() -> list[list[str]]:
    rows = []
    for layers in (6, 12, 24, 32):
        for micro_batches in (1, 4):
            shares = [f"{context_efficiency(layers, micro_batches, context):.2f}" for context in CONTEXTS]
            rows.append([str(layers), str(micro_batches), *shares])
    return rows


def timed(rounds: int) -> str:
    """What two ranks are worth here."""
    rows, defaults = list[list[str]](), ["niah=off", "calibration=off", "logger=none", "device=cpu", "device.threads=1"]
    for layers in DEPTHS:
        config = atlas.compose([*defaults, f"model.layers={layers}"])
        found: Times = of_two_ranks(config, max(rounds * DEPTHS[0] // layers, 1))
        expected = context_efficiency(layers, 1, 2)
        seconds = [f"{one:.3f}" for one in (found.alone, found.rows, found.sequences)]
        gains = [f"{found.faster_by_rows:.2f}", f"{found.faster_by_sequences:.2f}"]
        rows.append([str(layers), *seconds, *gains, f"{expected:.2f}", f"{found.faster_by_sequences / 2:.2f}"])
    head = ["layers", *(f"{what}, s a step" for what in WAYS), *(f"{what}, tokens/s" for what in WAYS[1:])]
    compared = table([*head, "share of work: formula", "measured"], rows)
    return (
        f"The default model with one thread a process, {rounds} steps in turn (fewer of more layers); tokens/s of two"
        f" ranks over those of one process, medians. The formula is that of the wavefront.\n\n{compared}"
    )


def _mega(count: float) -> str:
    return f"{count / 1e6:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = " | ".join(head)
    lines = [f"| {columns} |", "|" + "---|" * (columns.count("|") + 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main(arguments: Sequence[str]) -> int:
    chosen = read_settings(Options, arguments)
    rows, sound = checks(chosen.counts)
    speed = timed(chosen.rounds) if chosen.rounds else "Not measured: `rounds=0`."
    three = "{}, MB: formula | measured | error"
    compared = table(["layout", "processes", three.format("kept"), three.format("sent a step")], rows)
    of_layout = ["{}: kept, GiB", "{}: sent a step, GiB", "{}: seconds a step"]
    head = ["model", "parameters", "devices", *(text.format(kind) for kind in ("DDP", "FSDP2") for text in of_layout)]
    expected = table(head, forecast(chosen))
    efficiency = table(["layers", "micro-batches", *(f"C = {context}" for context in CONTEXTS)], contexts())
    command = " ".join(["python -m experiments.scaling", *arguments])
    assumed = (
        f"{chosen.flops:.3g} operations/s and {chosen.bandwidth:.3g} bytes/s of a device, {chosen.tokens:,} tokens"
    )
    text = (
        f"# Scaling\n\nWritten by `{command}`. The formulas are in [cost.py](cost.py).\n\n"
        f"## The formulas against this machine\n\n`model=tiny`, Muon, gloo; the rank with the most.\n\n{compared}\n\n"
        f"## Two ranks on this machine\n\n{speed}\n\n"
        f"## What is to be expected\n\nAssumed, not measured: {assumed} a step. Seconds: all of the sending hidden"
        f" behind the work, to none of it. Kept are weights, gradients and moments, with FSDP2 also what is whole at a"
        f" time; activations come on top.\n\n{expected}\n\n"
        f"## Context parallelism by shards\n\nShare of the time in which the ranks work, by the formula.\n\n"
        f"{efficiency}\n"
    )
    RESULTS.write_text(text, encoding="utf-8")
    print(text)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
