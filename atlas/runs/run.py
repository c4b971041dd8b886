"""One run from configuration to summary."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from inspect import signature
from pathlib import Path

import torch

from atlas.checkpoint.manager import CheckpointManager
from atlas.config import CheckpointLayout, ConfigError, RunConfig, require
from atlas.config.exits import no_exit
from atlas.config.keys import flat, plain
from atlas.config.run import number_of_processes
from atlas.data.sampler import batches_of
from atlas.data.source import DataSource, baseline_name
from atlas.models.language_model import AtlasModel
from atlas.parallel.agreement import require_same_settings, require_same_weights
from atlas.parallel.ranks import ALONE, RankError, Ranks, log_name
from atlas.runs.allocator import keep_freed_memory
from atlas.runs.build import (
    build_data,
    build_model,
    build_optimizer,
    build_probe,
    build_telemetry,
    graph_capture,
    prepare_device,
    with_vocabulary,
)
from atlas.runs.changes import Changes, recorded_config
from atlas.runs.data_record import rooted
from atlas.runs.environment import PeakMemory, config_hash, device_name, git_revision, kernels_in_words, versions
from atlas.runs.finish import close, finish
from atlas.runs.folder import log_file, make_folder, reason, remove_if_empty
from atlas.runs.load import refuse_a_larger_model
from atlas.runs.notices import damaged_lines, start_notices, start_warnings
from atlas.runs.own_code import changed_code, record_code
from atlas.runs.processes import run_in_processes
from atlas.runs.ready_kernels import require_kernels
from atlas.runs.resume import as_text
from atlas.runs.self_test import require_agreement
from atlas.runs.signals import listening
from atlas.runs.slicing import in_slices, slice_state
from atlas.runs.start import starting_point
from atlas.runs.step_memory import require_room
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.run_files import CHECKPOINTS, RunFiles
from atlas.telemetry.sinks import RunInfo, SweepJob, TelemetryError
from atlas.training.clocks import Clocks
from atlas.training.early_stop import EarlyStop
from atlas.training.errors import AbortError, StopRequested
from atlas.training.evaluation import Evaluator
from atlas.training.faults import FaultInjector, parse_fault
from atlas.training.gate_monitor import GateMonitor
from atlas.training.optimizer import ScheduledOptimizer
from atlas.training.rng import seed_rng
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.trainer import Trainer
from atlas.training.watchers.facts import facts_of
from atlas.training.weight_average import WeightAverage

log = logging.getLogger("atlas")


def run(config: RunConfig, folder: Path, job: SweepJob | None = None, ranks: Ranks = ALONE) -> RunSummary:
    """Train in `folder` and leave there what docs/architecture.md section 3 lists; `job` names the sweep it belongs to.

    Every rank calls it with the same configuration and folder, in which rank 0 alone writes, logs of the others apart.

    Raises `ConfigError` before anything is written. A later error is raised again after a summary of status `failed`, a
    signal (`signals.py`) as KeyboardInterrupt after one of status `aborted`. If a safeguard stops the run, the returned
    summary has status `aborted`. A run that is complete already is not changed.
    """
    if ranks.world == 1 < config.device.processes:
        return run_in_processes(config, folder, job)
    with ExitStack() as closing:
        with ranks.starting():
            made = make_folder(folder, "folder")
            if ranks.first:
                closing.callback(remove_if_empty, folder, *made)
            closing.enter_context(log_file(folder, log_name(ranks.rank)))
            keep_freed_memory()
            config = rooted(config)
            seed_rng(config.seed + ranks.rank)  # a run that is continued takes its generators up later
            data = build_data(config)
            config = with_vocabulary(config, data)
            trainer = _build(config, data, folder, ranks)
        state, corpus, device = trainer.state, trainer.data.corpus, trainer.step.device
        _agree(config, folder, trainer)
        if config.checkpoint.layout is CheckpointLayout.sharded:
            require_shared(folder, ranks)
        closing.callback(trainer.checkpoints.close)
        notices = start_notices(config, device)
        before = ranks.from_first(lambda: recorded_config(folder, config.trust, data))
        trainer.checkpoints.former_hashes = RunFiles(folder, strict=False).config_hashes
        notices += ranks.from_first(lambda: starting_point(config, before, folder, state, trainer.checkpoints, corpus))
        notices += ranks.from_first(lambda: changed_code(folder, config))
        state.take_over()
        changes = Changes.between(rooted(before or config), config)
        finished = ranks.from_first(lambda: read_summary(folder))
        over = state.step >= config.train.steps or state.stop_reason
        if over and finished is not None and finished.status == "completed":
            changes.require_none(folder, state)
            ranks.from_first(lambda: print(f"the run in {folder} is complete: nothing is left to do"))
            return finished
        changes.apply(state, trainer.data)

        peak = PeakMemory(device)
        summary = _new_summary(config, folder, trainer, job)
        ranks.from_first(summary.write)  # if the run is killed, its status stays `running`
        ranks.limit(config.parallel.step_timeout_s)
        if in_slices(config, ranks):
            slice_state(config, state, device)
        log.info("rank %d of %d, process %d on %s", ranks.rank, ranks.world, os.getpid(), socket.gethostname())
        with ExitStack() as signals, _recorded(summary, trainer, peak), no_exit():
            _record_start(config, folder, trainer, summary, job, changes, notices)
            signals.enter_context(listening(trainer.stop))
            text = len(corpus.train) if corpus else 0
            facts = facts_of(config, summary.baseline_loss, state.step, text, summary.baseline_name)
            trainer.watchers.begin(facts, folder, corpus, lambda: _model_and_optimizer(config, device))
            trainer.run()
        trainer.stop.check_here()  # a signal that came too late to stop this run is the caller's
        return summary


def _record_start(
    config: RunConfig,
    folder: Path,
    trainer: Trainer,
    summary: RunSummary,
    job: SweepJob | None,
    changes: Changes,
    notices: list[str],
) -> None:
    """Write what is known before step 1 into the summary and the telemetry. Every rank calls it."""
    state, telemetry, ranks, data = trainer.state, trainer.telemetry, trainer.ranks, trainer.data
    if data.corpus:
        summary.bytes_per_token = data.corpus.bytes_per_token
        summary.train_bytes_per_token = data.corpus.train_bytes_per_token
    summary.baseline_loss = ranks.from_first(lambda: data.baseline(config.train.validation_batches))
    summary.baseline_name = baseline_name(data)
    summary.validation_digest = trainer.evaluator.counted_digest
    steps, settings = config.train.steps, plain(config)
    telemetry.open(RunInfo(folder, steps, settings, versions(), state.step, state.segment, job))
    described = data.describe() | ({"processes": ranks.world} if ranks.world > 1 else {})
    telemetry.event("start", state.step, **described, parameters=summary.parameters, device=summary.device)
    tested = require_agreement(config, trainer.step.device, trainer.step.precision)
    telemetry.event("self_test", state.step, **tested._asdict())
    ranks.from_first(lambda: changes.record(folder, state, telemetry))
    for notice in notices:
        telemetry.event("notice", state.step, message=notice)
    ranks.from_first(lambda: record_code(folder, config))
    for warning in [*damaged_lines(folder), *start_warnings(config, data, described, state.step + 1, ranks)]:
        telemetry.event("warning", state.step, message=warning)


def _build(config: RunConfig, data: DataSource, folder: Path, ranks: Ranks) -> Trainer:
    """The trainer at step 0; every rank makes its own."""
    world = number_of_processes(config.device, config.parallel, ranks.world)
    config.train.require_parts(config.parallel.groups(world), config.parallel.context)
    device, precision = prepare_device(config.device, ranks)
    if config.resume:
        refuse_a_larger_model(config, folder / CHECKPOINTS)
    require_room(config, device, precision, world)
    require_kernels(config, device, precision)
    require_agreement(config, device, precision)
    model = build_model(config)
    if not in_slices(config, ranks):  # a device may have no room for all of it
        model = model.to(device)
    checkpoints = CheckpointManager(
        folder / CHECKPOINTS,
        config.checkpoint.keep,
        config_hash=config_hash(config),
        versions=versions(),
        parts=TrainState.PARTS,
    )
    monitor, history = GateMonitor(config.train.gate), History(config.rollback)
    state = TrainState(model, build_optimizer(config, model), monitor, history, ranks=ranks)
    state.average = WeightAverage(model, config.train.ema) if config.train.ema else None
    state.early_stop = EarlyStop(config.train.patience, config.train.steps) if config.train.patience else None
    capture = graph_capture(config, device, ranks)
    compiled, context = config.device.compile, config.parallel.context
    step = TrainStep(config.train, device, precision, ranks, compiled=compiled, capture=capture, context=context)
    by_rows = ranks.world == 1 or "rows" in signature(data.batch).parameters
    require(by_rows, "data._target_", config.data["_target_"], "a source with batch(step, rows), for several processes")
    state.data = data.corpus.digest if data.corpus else ""
    state.batches = batches_of(config.data)
    inject, has_memory = config.debug.inject, config.model.memory.enabled
    fault = parse_fault(inject, config.train.steps, has_memory=has_memory) if inject else None
    probe = build_probe(config, data) if config.niah.enabled else None
    evaluator = Evaluator(data, step, config.train.validation_batches, config.rollback.watch_rows)
    faults, telemetry = FaultInjector(fault), build_telemetry(config, ranks)
    return Trainer(config, state, data, step, evaluator, telemetry, checkpoints, probe, faults, Clocks())


def _model_and_optimizer(config: RunConfig, device: torch.device) -> tuple[AtlasModel, ScheduledOptimizer]:
    model = build_model(config).to(device)
    return model, build_optimizer(config, model)


def _agree(config: RunConfig, folder: Path, trainer: Trainer) -> None:
    """Raise `ConfigError` on every rank where the ranks would not train the same run."""
    kernels = kernels_in_words(trainer.step.device)
    settings = {name: as_text(value) for name, value in flat(asdict(config)).items()}
    settings |= {"hydra.run.dir": str(folder), "text": trainer.state.data, "kernels": kernels} | versions()
    require_same_settings(trainer.ranks, settings)
    try:
        require_same_weights(trainer.ranks, trainer.state.model, "before step 1")
    except RankError as error:
        raise ConfigError(str(error)) from error


def require_shared(folder: Path, ranks: Ranks) -> None:
    """Raise `ConfigError` on every rank where one does not see the folder of rank 0, into which all are to write."""
    sign = folder / ".rank0"
    ranks.from_first(sign.touch)
    seen = ranks.gather(sign.exists())
    ranks.from_first(sign.unlink)
    other = next((rank for rank, sees in enumerate(seen) if not sees), 0)
    allowed = f"whole: rank {other} does not see rank 0's folder {folder} (sharded needs a disk that all ranks share)"
    require(all(seen), "checkpoint.layout", "sharded", allowed)


@contextmanager
def _recorded(summary: RunSummary, trainer: Trainer, peak: PeakMemory) -> Iterator[None]:
    """Record in summary.json and in the telemetry how the run inside ends, whatever ends it."""
    ranks = trainer.ranks
    try:
        yield
        summary.status, summary.reason = "completed", trainer.state.stop_reason
    except AbortError as error:
        summary.status, summary.reason = error.status, str(error)
    except TelemetryError as error:
        ranks.part(str(error))
        with suppress(AbortError, TelemetryError):  # a last try: the checkpoints may be on another disk
            trainer.saver.save_alone({"healthy": trainer.state.history.healthy})
        summary.status, summary.reason = "aborted", str(error)
    except KeyboardInterrupt as error:
        if not isinstance(error, StopRequested):
            ranks.part("a second signal")
        summary.status, summary.reason = "aborted", str(error) or "interrupted (Ctrl-C or SIGTERM)"
        raise
    except BaseException as error:
        summary.status, summary.reason = "failed", reason(error)
        if not isinstance(error, RankError):
            ranks.part(summary.reason)
        log.exception("the run failed")
        with suppress(OSError, TelemetryError):
            trainer.telemetry.event("error", trainer.state.step, message=summary.reason)
        raise
    finally:
        if lost := ranks.at_end(lambda: _end(summary, trainer, peak)):
            log.warning("%s", lost)
            if ranks.first:
                print(f"warning: {lost}; the run has ended without it", file=sys.stderr)
                summary.warnings.append(lost)
                with suppress(OSError):
                    summary.write()
        log.info("%s at step %d%s", summary.status, trainer.state.step, f": {summary.reason}" if summary.reason else "")


def _end(summary: RunSummary, trainer: Trainer, peak: PeakMemory) -> None:
    finish(summary, trainer, peak)
    close(summary, trainer)


def _new_summary(config: RunConfig, folder: Path, trainer: Trainer, job: SweepJob | None) -> RunSummary:
    state = trainer.state
    return RunSummary(
        folder=str(folder),
        step=state.step,
        steps=config.train.steps,
        tokens=state.tokens,
        segment=state.segment,
        rollbacks=state.rollbacks,
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        device=device_name(trainer.step.device),
        processes=trainer.ranks.world,
        versions=versions(),
        git=git_revision(),
        config_hash=config_hash(config),
        data_digest=state.data,
        launcher=job.launcher if job else "",
    )
