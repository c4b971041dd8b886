"""Tokens per second of the contestants' training steps, timed in turn on all cores."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch

from atlas.runs.build import build_data
from experiments.field.contestants import configuration
from experiments.field.worker import start
from experiments.speed.race import race


def tokens_per_second(names: list[str], size: str, rounds: int) -> dict[str, float]:
    """Whole steps on the batches of the recipe, update included; the median of the rounds."""
    config = configuration(names[0], size)
    batch = build_data(config).batch(1)
    steps = {}
    for name in names:
        state, step = start(name, configuration(name, size))
        steps[name] = partial(step, state, batch)
        steps[name]()  # the first step makes what the later ones keep
    seconds = race(steps, rounds, torch.device("cpu"))
    return {name: batch.inputs.numel() / median(taken) for name, taken in seconds.items()}
