"""One run from configuration to summary."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from omegaconf import OmegaConf

from atlas.checkpoint.manager import CheckpointManager
from atlas.config import RunConfig
from atlas.data.source import DataSource
from atlas.kernels.library import missing
from atlas.runs.allocator import keep_freed_memory
from atlas.runs.build import (
    build_data,
    build_model,
    build_optimizer,
    build_probe,
    build_telemetry,
    prepare_device,
    with_vocabulary,
)
from atlas.runs.changes import Changes, former_hashes, frozen_config
from atlas.runs.data_record import rooted
from atlas.runs.environment import PeakMemory, config_hash, device_name, git_revision, versions
from atlas.runs.finish import close, finish
from atlas.runs.folder import log_file, make_folder, remove_if_empty
from atlas.runs.resume import CHECKPOINTS
from atlas.runs.signals import listening
from atlas.runs.start import starting_point
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.sinks import RunInfo, SweepJob, TelemetryError
from atlas.training.clocks import Clocks
from atlas.training.errors import AbortError
from atlas.training.evaluation import Evaluator
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.trainer import Trainer
from atlas.training.watch.faults import FaultInjector, parse_fault
from atlas.training.watch.gate_monitor import GateMonitor
from atlas.training.watch.history import History

log = logging.getLogger("atlas")


def run(config: RunConfig, folder: Path, job: SweepJob | None = None) -> RunSummary:
    """Train in `folder` and leave there what docs/architecture.md section 3 lists; `job` names the sweep it belongs to.

    Raises `ConfigError` before anything is written. A later error is raised again after a summary of status `failed`, a
    signal (`signals.py`) as KeyboardInterrupt after one of status `aborted`. If a safeguard stops the run, the returned
    summary has status `aborted`. A run that is complete already is not changed.
    """
    make_folder(folder, "folder")
    with ExitStack() as closing:
        closing.callback(remove_if_empty, folder)
        closing.enter_context(log_file(folder))
        keep_freed_memory()
        config = rooted(config)
        data = build_data(config)
        config = with_vocabulary(config, data)
        trainer, before = _build(config, data, folder)
        state, telemetry, corpus = trainer.state, trainer.telemetry, trainer.data.corpus
        closing.callback(trainer.checkpoints.close)
        reason = missing()
        notices = [f"no compiled kernels, so steps on the CPU take longer: {reason}"] if reason else []
        notices += starting_point(config, before, folder, state, trainer.checkpoints, corpus)
        changes = Changes.between(rooted(before or config), config)
        finished = read_summary(folder)
        if state.step >= config.train.steps and finished is not None and finished.status == "completed":
            changes.require_none(f"the run in {folder} is complete", state.step)
            print(f"the run in {folder} is complete: nothing is left to do")
            return finished
        changes.apply(state, trainer.data)

        peak = PeakMemory(trainer.step.device)
        summary = _new_summary(config, folder, state, trainer.step.device)
        summary.launcher = job.launcher if job else ""
        summary.write()  # if the run is killed, its status stays `running`
        with ExitStack() as signals, _recorded(summary, trainer, peak):
            summary.bytes_per_token = corpus.bytes_per_token if corpus else 1.0
            summary.baseline_loss = trainer.data.baseline(config.train.validation_batches)
            telemetry.open(_run_info(config, folder, state, job))
            description = trainer.data.describe()
            telemetry.event("start", state.step, **description, parameters=summary.parameters, device=summary.device)
            changes.record(folder, state, telemetry)
            for notice in notices:
                telemetry.event("notice", state.step, message=notice)
            for warning in corpus.warnings if corpus else ():
                telemetry.event("warning", state.step, message=warning)
            signals.enter_context(listening(trainer.stop))
            trainer.run()
        trainer.stop.check()  # a signal that came too late to stop this run is the caller's
        return summary


def _build(config: RunConfig, data: DataSource, folder: Path) -> tuple[Trainer, RunConfig | None]:
    """The trainer at step 0, and the frozen configuration of the run in `folder`, if there is one."""
    device, precision = prepare_device(config.device)
    model = build_model(config).to(device)
    before = frozen_config(folder, config.trust)
    checkpoints = CheckpointManager(
        folder / CHECKPOINTS,
        config.checkpoint.every,
        config.checkpoint.keep,
        last_step=config.train.steps,
        config_hash=config_hash(config),
        versions=versions(),
        parts=TrainState.PARTS,
        former_hashes=former_hashes(folder, before),
    )
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    step = TrainStep(config.train, device, precision)
    state.data = data.corpus.digest if data.corpus else ""
    fault = parse_fault(config.debug.inject, config.train.steps) if config.debug.inject else None
    probe = build_probe(config, data) if config.niah.enabled else None
    evaluator = Evaluator(data, step, config.train.validation_batches, config.rollback.watch_rows)
    faults, telemetry = FaultInjector(fault), build_telemetry(config)
    return Trainer(config, state, data, step, evaluator, telemetry, checkpoints, probe, faults, Clocks()), before


@contextmanager
def _recorded(summary: RunSummary, trainer: Trainer, peak: PeakMemory) -> Iterator[None]:
    """Record in summary.json and in the telemetry how the run inside ends, whatever ends it."""
    try:
        yield
        summary.status = "completed"
    except AbortError as error:
        summary.status, summary.reason = "aborted", str(error)
    except TelemetryError as error:
        with suppress(AbortError, TelemetryError):  # a last try: the checkpoints may be on another disk
            trainer.saver.save({"healthy": trainer.state.history.healthy})
        summary.status, summary.reason = "aborted", str(error)
    except KeyboardInterrupt as error:
        summary.status, summary.reason = "aborted", str(error) or "interrupted (Ctrl-C or SIGTERM)"
        raise
    except BaseException as error:
        summary.status, summary.reason = "failed", f"{type(error).__name__}: {error}"
        log.exception("the run failed")
        raise
    finally:
        finish(summary, trainer, peak)
        close(summary, trainer)


def _new_summary(config: RunConfig, folder: Path, state: TrainState, device: torch.device) -> RunSummary:
    return RunSummary(
        folder=str(folder),
        steps=config.train.steps,
        parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        device=device_name(device),
        versions=versions(),
        git=git_revision(),
        config_hash=config_hash(config),
        data_digest=state.data,
    )


def _run_info(config: RunConfig, folder: Path, state: TrainState, job: SweepJob | None) -> RunInfo:
    return RunInfo(
        folder,
        config.train.steps,
        config=OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True),  # type: ignore[arg-type]
        versions=versions(),
        start_step=state.step,
        segment=state.segment,
        job=job,
    )
