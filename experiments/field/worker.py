"""Train and measure one contestant: loss of text, needles found by key, gates.

python -m experiments.field.worker NAME SIZE SEED STEPS SAMPLES RUNS

One thread. Writes its file in the folder RUNS when all is measured, so a file that is there is complete.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from atlas.config import RECALL, ModelConfig, RunConfig
from atlas.config.atomic import write_atomically
from atlas.data.source import DataSource
from atlas.models.language_model import AtlasModel
from atlas.models.plan import ChunkPlan, MemoryMode
from atlas.probes.haystacks import grid
from atlas.probes.key_blind import key_blind_readers
from atlas.probes.recall import answer
from atlas.runs.build import build_data, build_optimizer, build_probe, prepare_device
from atlas.runs.environment import git_revision
from atlas.training.evaluating import evaluating
from atlas.training.evaluation import Evaluator
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.step_result import StepResult
from experiments.field.contestants import DEFAULT, configuration, model_of
from experiments.field.record import Job, Record

FACTORS = (1, 2, 4)  # lengths of the probes, in trained lengths
HAYSTACKS = {"multi_key": "noise", "multi_key_text": "text"}  # one of four needles is asked for


def start(name: str, config: RunConfig) -> tuple[TrainState, TrainStep]:
    """The state before step 1, and the step: the ones of a run."""
    model = model_of(name, config)
    monitor, history = GateMonitor(config.train.gate), History(config.rollback)
    state = TrainState(model, build_optimizer(config, model), monitor, history)
    device, precision = prepare_device(config.device)
    return state, TrainStep(config.train, device, precision)


def trained(config: RunConfig, state: TrainState, step: TrainStep, data: DataSource) -> list[StepResult]:
    """Every step's result. Raises `ArithmeticError` for one that is not finite: nothing here rolls it back."""
    results = []
    while state.step < config.train.steps:
        result = step(state, data.batch(state.step + 1))
        if not result.finite:
            raise ArithmeticError(f"step {state.step + 1}: loss {result.loss}, gradient {result.gradient_norm}")
        results.append(result)
    return results


class Found(NamedTuple):
    """Shares of needles by haystack and length: of a model, and of the best reader that ignores the key."""

    recall: dict[str, dict[str, float]]
    key_blind: dict[str, dict[str, float]]


def found_by(
    model: AtlasModel, config: RunConfig, data: DataSource, mode: MemoryMode, reach: int, factors: Sequence[int]
) -> Found:
    """At three depths, on the same questions for every contestant.

    Counted are questions whose needle is further away than `reach` tokens.
    """
    probe = build_probe(config, data)
    lengths = [config.train.sequence * factor for factor in factors]
    found = Found({}, {})
    with evaluating(model):
        cells = [cell for cell in grid(probe.config, probe.needles, probe.text, lengths) if not cell.missing]
        for task, haystack in HAYSTACKS.items():
            for length in lengths:
                right: list[bool] = []
                readers: list[dict[str, float]] = []
                for questions in cells:
                    if (questions.task, questions.length) == (task, length):
                        counted = questions.distance - 1 > reach
                        right += answer(model, questions, counted, mode, guess=mode is MemoryMode.off).right.tolist()
                        readers.append(key_blind_readers(questions, counted))
                if right:
                    found.recall.setdefault(haystack, {})[str(length)] = fmean(right)
                    best = max(fmean(one[name] for one in readers) for name in readers[0])
                    found.key_blind.setdefault(haystack, {})[str(length)] = best
    return found


def reach_of(model: ModelConfig) -> int:
    """Tokens back that its window attention sees."""
    return model.layers * (model.window - 1)


def measured(job: Job) -> Record:
    name, size, seed, steps, samples = job
    config = configuration(name, size, seed, steps)
    niah = replace(config.niah, levels=[RECALL.name], tasks=["multi_key_text"], all_depths=True, samples=samples)
    config = replace(config, niah=niah, device=replace(config.device, threads=1))
    data = build_data(config)
    state, step = start(name, config)
    results = trained(config, state, step, data)
    model = state.model
    model.plan = ChunkPlan.at_step(config, steps)
    loss = Evaluator(data, step, config.train.validation_batches, watch_rows=1).validation_loss(model)
    if not isfinite(loss):
        raise ArithmeticError(f"validation loss {loss}")
    memory = config.model.memory.enabled
    reach = reach_of(configuration(DEFAULT, size).model)
    off = found_by(model, config, data, MemoryMode.off, reach, FACTORS[:1]).recall if memory else {}
    recall, key_blind = found_by(model, config, data, MemoryMode.learn, reach, FACTORS)
    gates = [result.gates.polarised if result.gates else None for result in results]
    return Record(
        name=name,
        seed=seed,
        steps=steps,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=loss,
        recall=recall,
        recall_off=off["noise"][str(config.train.sequence)] if memory else None,
        needles=samples * len(config.niah.depths),
        polarised_peak=gates[int(config.train.gate.polarisation_hold * steps) - 1],
        polarised_end=gates[-1],
        git=git_revision() or "unknown",
        losses=[result.loss for result in results[steps // 10 - 1 :: steps // 10]],
        size=size,
        key_blind=key_blind,
    )


def main(arguments: Sequence[str]) -> None:
    name, size, seed, steps, samples, runs = arguments
    torch.set_num_threads(1)
    job = Job(name, size, int(seed), int(steps), int(samples))
    write_atomically(job.file(Path(runs)), json.dumps(asdict(measured(job)), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
