"""The models of the table: their settings, and how to build them."""

from __future__ import annotations

from dataclasses import dataclass

import atlas
from atlas.config import RunConfig
from atlas.models.language_model import AtlasModel
from atlas.runs.build import build_model
from experiments.field.convolved import with_convolution
from experiments.field.lstm import with_lstm

DEFAULT, ATTENTION, TRANSFORMER, LSTM = "default", "attention alone", "Transformer", "LSTM"
MUON, MORE_LOCALS = "muon", "four local memories"
CONVOLVED = ("attention alone with convolution", "Transformer with convolution")


@dataclass(frozen=True)
class Contestant:
    settings: tuple[str, ...]  # overrides of the default
    about: str


FIELD = {
    DEFAULT: Contestant((), "`python -m atlas.train`: rule gd, one global and one local memory, fusion gated_sum"),
    "momentum": Contestant(("model.memory.rule=momentum",), "the learning rule of Titans"),
    "omega": Contestant(("model.memory.rule=omega",), "gradient descent over a window of tokens"),
    MUON: Contestant(("model.memory.rule=muon",), "momentum, orthogonalised by K = 5 iterations of Newton-Schulz"),
    "atlas": Contestant(("ablation=atlas_rule",), "the whole ATLAS rule: window, momentum, Newton-Schulz, features"),
    "no global memory": Contestant(("ablation=no_global",), "local memories alone"),
    "no Q-K projection": Contestant(("ablation=no_projection",), "local memories read with q"),
    "projection alone": Contestant(("ablation=projection_alone",), "local memories read with q', not q + lambda q'"),
    "no convolution": Contestant(("ablation=no_convolution",), "no convolution on q, k, v"),
    MORE_LOCALS: Contestant(("chunk_size=set_a",), "chunks of 8, 16, 32, 64 beside the global memory"),
    "fusion additive": Contestant(("ablation=additive",), "a + z, no gate"),
    "fusion multiplicative": Contestant(("ablation=multiplicative",), "a * g: the gate multiplies attention alone"),
    ATTENTION: Contestant(("model=attention_only",), "window attention, no memory"),
    TRANSFORMER: Contestant(("model=transformer",), "full causal attention, no memory"),
    CONVOLVED[0]: Contestant(
        ("model=attention_only",),
        "window attention with the memory's convolution on q, k, v, and the start it has there",
    ),
    CONVOLVED[1]: Contestant(("model=transformer", "model.feedforward=696"), "full causal attention with the same"),
    LSTM: Contestant(("model=transformer", "model.feedforward=488"), "torch.nn.LSTM in the place of attention"),
}
ITERATIONS = {
    f"muon {outer} global {local} local": Contestant(
        (
            "model.memory.rule=muon",
            f"model.memory.muon.iterations_global={outer}",
            f"model.memory.muon.iterations={local}",
        ),
        f"muon with K of {outer} in the global memory, {local} in the local ones",
    )
    for outer, local in ((3, 5), (5, 3), (3, 3))
}
SMALL = {
    DEFAULT: Contestant(("model=small",), "4 layers of width 256, sequences of 1024 tokens"),
    ATTENTION: Contestant(
        ("model=small", "model.memory.enabled=false", "model.feedforward=1184"), "window attention, no memory"
    ),
    TRANSFORMER: Contestant(
        (
            "model=small",
            "model.memory.enabled=false",
            "model.window=0",
            "model.persistent_keys=0",
            "model.feedforward=1224",
        ),
        "full causal attention, no memory",
    ),
}
SIZES = {"tiny": FIELD | ITERATIONS, "small": SMALL}


def configuration(name: str, size: str = "tiny", seed: int = 0, steps: int = 1000) -> RunConfig:
    """The default recipe with the settings of a contestant, on one thread of a CPU."""
    own = SIZES[size][name].settings
    return atlas.compose([*own, f"seed={seed}", f"train.steps={steps}", "logger=none", "device=cpu"])


def model_of(name: str, config: RunConfig) -> AtlasModel:
    model = build_model(config)
    if name in CONVOLVED:
        return with_convolution(model, config.seed)
    return with_lstm(model, config.seed) if name == LSTM else model
