"""Train language models whose memory learns at test time, and prove that the memory works.

import atlas
cfg = atlas.compose(["model=tiny", "chunk_size=c16"])   # a validated RunConfig, the same as the command line's
model = atlas.build_model(cfg)                          # an AtlasModel
run = atlas.train(cfg)                                  # what `python -m atlas.train` does
model, cfg = atlas.load("outputs/runs/...")             # a trained model and its configuration
text = atlas.generate(model, "def main(")               # a continuation

Names are imported on first use, so that `import atlas` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["ConfigError", "RunConfig", "__version__", "build_model", "compose", "generate", "load", "train"]

if TYPE_CHECKING:
    from atlas.config import ConfigError, RunConfig
    from atlas.config.composition import compose
    from atlas.generate import generate
    from atlas.runs.build import build_model
    from atlas.runs.load import load
    from atlas.train import train

_HOMES = {
    "ConfigError": "atlas.config",
    "RunConfig": "atlas.config",
    "compose": "atlas.config.composition",
    "build_model": "atlas.runs.build",
    "load": "atlas.runs.load",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in ("generate", "train"):  # the module is the function: see atlas/train.py
        return import_module(f"atlas.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'atlas' has no attribute '{name}'")
