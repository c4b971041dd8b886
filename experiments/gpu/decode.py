"""Tokens per second of decoding after a long context, beside a Transformer of the same width with its cache of keys.

python -m experiments.gpu.decode [device=cuda] [model=small] [contexts=1024,4096,16384,32768] [chunk=16] [batch=1]

Each way once with kernels launched one by one, once as CUDA graphs (`atlas/models/decode_graph.py`; of the Transformer
one token after the context, whose cache it reads and copies). On a CPU a graph is the same work on fixed memory: times
then say nothing. Models are untrained, in float32. Prints the table and writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

import atlas
from atlas.config import VOCABULARY
from atlas.config.arguments import read_settings, run_command
from atlas.kernels import gpu
from atlas.models.decode_graph import DecodeGraph
from atlas.models.decoding import prefilled
from atlas.models.language_model import AtlasModel, ModelState
from atlas.models.plan import MemoryMode
from experiments.gpu.options import integers, require_device, require_positive
from experiments.speed.contestants import Shape, configuration
from experiments.speed.race import seconds_of

Token = Callable[[], object]


@dataclass(frozen=True)
class Options:
    device: str = "cuda"
    model: str = "small"
    contexts: str = "1024,4096,16384,32768"
    chunk: int = 16
    batch: int = 1
    tokens: int = 64  # between two readings of the clock
    repeats: int = 5

    def __post_init__(self) -> None:
        require_device(self.device)
        integers("contexts", self.contexts)
        require_positive(chunk=self.chunk, batch=self.batch, tokens=self.tokens, repeats=self.repeats)


def on_fixed_memory(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Stands for a graph on a CPU."""
    found = work().clone()

    def replay() -> None:
        found.copy_(work())

    return found, replay


def one_by_one(model: AtlasModel, state: ModelState, batch: int, capture: object) -> Token:
    """Decodes the next token at each call."""
    graph = DecodeGraph(model, model.plan, MemoryMode.learn, capture)  # type: ignore[arg-type]
    last = torch.zeros(batch, 1, dtype=torch.int64, device=model.embedding.weight.device)

    def token() -> None:
        nonlocal state, last
        logits, state = graph.step(last, state)
        last = logits.argmax(-1, keepdim=True)

    return token


def again(model: AtlasModel, state: ModelState, batch: int, capture: object) -> Token:
    """Decodes the token after the context at each call, as one graph."""
    last = torch.zeros(batch, 1, dtype=torch.int64, device=model.embedding.weight.device)

    def token() -> Tensor:
        logits: Tensor = model(last, state).logits[:, -1].argmax(-1, keepdim=True)
        return logits

    return capture(token)[1]  # type: ignore[operator,no-any-return]


def milliseconds(token: Token, options: Options) -> float:
    """Of a token: median. A first round warms up, and records what there is to record."""
    device = torch.device(options.device)

    def round_() -> None:
        for _ in range(options.tokens):
            token()

    round_()
    return 1e3 * median(seconds_of(round_, device) for _ in range(options.repeats)) / options.tokens


@torch.no_grad()
def main(arguments: list[str]) -> int:
    options = read_settings(Options, arguments)
    device = torch.device(options.device)
    capture = gpu.cuda_capture if device.type == "cuda" else on_fixed_memory
    torch.set_float32_matmul_precision("high")
    print(f"{options.model}, batch {options.batch}, on {options.device}\n")
    print("| context | model | kernels | ms per token | tokens/s |")
    print("|---|---|---|---|---|")
    for context in integers("contexts", options.contexts):
        for name in (f"gd_c{options.chunk}", "transformer"):
            config = configuration(name, Shape(options.model, options.batch, context))
            model = atlas.build_model(config).to(device).eval()
            generator = torch.Generator().manual_seed(0)
            prompt = torch.randint(0, VOCABULARY, (options.batch, context), generator=generator).to(device)
            state = prefilled(model, prompt, model.plan, MemoryMode.learn)
            graphed = again if name == "transformer" else one_by_one
            ways = {
                "one by one": one_by_one(model, state, options.batch, None),
                "graph": graphed(model, state, options.batch, capture),
            }
            for way, token in ways.items():
                spent = milliseconds(token, options)
                speed = 1e3 * options.batch / spent
                print(f"| {context} | {name} | {way} | {spent:.3f} | {speed:,.0f} |", flush=True)
    for lost in gpu.news():
        print(lost)
    return int(gpu.graphless())


if __name__ == "__main__":
    sys.exit(run_command(main, None, __doc__ or ""))
