"""Train one contestant on one task, and measure it after every epoch.

Legend: L tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from atlas.data.mqar import MQARSequences
from atlas.models.convolution import CONVOLUTION
from atlas.models.language_model import AtlasModel
from atlas.probes.keys import memory_layers
from atlas.probes.recall import attention_reach
from atlas.runs.build import build_optimizer, graph_capture, prepare_device
from atlas.runs.environment import device_name, git_revision
from atlas.training.evaluating import evaluating
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from experiments.field.convolved import ConvolvedLinear
from experiments.mqar.contestants import configuration, model_of
from experiments.mqar.data import TEST, TRAINING, batches, epoch, examples, share_within
from experiments.mqar.progress import Progress
from experiments.mqar.tasks import TASKS

ENOUGH = 0.99  # accuracy at which zoology stops
TESTED = 64  # rows read at once
STATE_TOKENS = 512  # the longest sequence of figure 2 of 2312.04927


@dataclass(frozen=True)
class Record:
    name: str
    task: str
    width: int
    rate: float  # highest learning rate
    parameters: int
    state: int  # numbers that the model keeps of a sequence of the longest test, or of `STATE_TOKENS` if that is longer
    reachable: float  # share of the tests' values that the model can have seen at their questions
    accuracy: list[float] = field(default_factory=list)  # after each epoch, the mean of zoology's tests
    finite: bool = True  # False: training ended at a loss or gradient that is not finite
    ended: bool = True  # False: training goes on from here when the command is run again
    device: str = ""
    git: str = ""  # revisions that trained it
    by_test: list[list[float]] = field(default_factory=list)  # accuracy after each epoch, of every test
    longest_state: int = 0  # as `state`, of a sequence of the longest test however long

    @property
    def best(self) -> float:
        return max(self.accuracy, default=0.0)


def measured(
    name: str, task: str, width: int, rate: float, *, epochs: int, count: int, tests: int, checkpoint: Path
) -> Iterator[Record]:
    """What is known after each of at most `epochs` of `count` sequences; the last record has ended. What the task takes
    of these amounts: see `Task`.

    Fewer epochs where `tests` sequences are read with accuracy `ENOUGH`. Each one is saved in `checkpoint` first, and
    training goes on from there, bitwise; the caller removes it.
    """
    given = TASKS[task]
    epochs = given.epochs(epochs)
    config = configuration(name, task, width, rate, epochs * given.steps(count))
    device, precision = prepare_device(config.device)
    model = model_of(name, config).to(device)
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    step = TrainStep(config.train, device, precision, capture=graph_capture(config, device))
    training = [examples(one.count(count), one, TRAINING, random_filler=given.random_filler) for one in given.training]
    asked = [*given.tests, *given.beside]
    sets = [examples(one.count(tests), one, TEST, random_filler=given.random_filler) for one in asked]
    judged = sets[: len(given.tests)]
    numbers = sum(parameter.numel() for parameter in model.parameters())
    tokens = max(one.tokens for one in asked)
    kept, longest = state_numbers(model, min(tokens, STATE_TOKENS)), state_numbers(model, tokens)
    reachable = float(np.mean([share_within(test, reach(model)) for test in judged]))
    order = np.random.default_rng(config.seed)
    done = Progress.read(checkpoint, state, order)
    while True:
        best = max(done.accuracy, default=0.0)
        ended = not done.finite or len(done.accuracy) >= epochs or best >= ENOUGH
        if done.accuracy:
            found, git = list(done.accuracy), " and ".join(done.revisions)
            known = (numbers, kept, reachable, found, done.finite, ended, device_name(device), git)
            yield Record(name, task, width, rate, *known, list(done.by_test), longest)
        if ended:
            return
        done.trained_by(git_revision() or "unknown")
        done.finite = all(step(state, batch).finite for batch in epoch(given, training, order))
        done.by_test.append([accuracy(model, test, step) for test in sets])
        done.accuracy.append(float(np.mean(done.by_test[-1][: len(judged)])))
        done.save(checkpoint, state, order)


def accuracy(model: AtlasModel, sequences: MQARSequences, step: TrainStep) -> float:
    """Share of the questions whose value has the largest logit of the whole vocabulary."""
    right: list[Tensor] = []
    with evaluating(model), step.autocast():
        for batch in batches(sequences, TESTED):
            hidden = model.read(batch.inputs.to(step.device)).hidden
            asked = batch.weights > 0
            logits = hidden[asked.to(step.device)] @ model.embedding.weight.T
            right.append(logits.argmax(-1).cpu() == batch.targets[asked])
    return torch.cat(right).double().mean().item()


def reach(model: AtlasModel) -> int | None:
    """Tokens back of which the last output can depend; None = all."""
    attention = None if memory_layers(model) else attention_reach(model)
    return None if attention is None else attention + len(_convolutions(model)) * (CONVOLUTION - 1)


def state_numbers(model: AtlasModel, tokens: int) -> int:
    """Numbers in the state that a sequence of `tokens` leaves; masks and counters are none."""
    with evaluating(model):
        sequence = torch.zeros(1, tokens, dtype=torch.long, device=model.embedding.weight.device)
        leaves = pytree.tree_leaves(model.read(sequence).state)
    convolved = sum((CONVOLUTION - 1) * len(one.weight) for one in _convolutions(model))
    return convolved + sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())


def _convolutions(model: AtlasModel) -> list[ConvolvedLinear]:
    """Those of attention, whose last inputs are in no state of the model."""
    return [one for one in model.modules() if isinstance(one, ConvolvedLinear)]
