"""One run from configuration to summary: what `atlas.train` does inside its folder."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf

from atlas.build import build_data, build_model, build_optimizer, build_telemetry, resolve_device
from atlas.closing import closing_table, finish
from atlas.config import RunConfig
from atlas.environment import config_hash, device_name, git_revision, versions
from atlas.models.language_model import AtlasModel
from atlas.starting import CHECKPOINTS, starting_point
from atlas.telemetry.sinks import RunInfo
from atlas.training.checkpoint import CheckpointManager
from atlas.training.clocks import Clocks
from atlas.training.errors import AbortError
from atlas.training.evaluation import Evaluator
from atlas.training.faults import FaultInjector, parse_fault
from atlas.training.gates import GateMonitor
from atlas.training.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.summary import RunSummary
from atlas.training.trainer import Trainer

log = logging.getLogger("atlas")


def run(config: RunConfig, folder: Path) -> RunSummary:
    """Train in `folder` and leave there what architecture.md section 4 lists.

    Raises `ConfigError` before anything is written; later errors leave a summary of status `failed` and are raised
    again, Ctrl-C one of status `aborted`. A safeguard that stops the run returns a summary of status `aborted`.
    """
    device, precision = resolve_device(config.device)
    if config.device.threads:
        torch.set_num_threads(config.device.threads)
    data = build_data(config)
    fault = parse_fault(config.debug.inject) if config.debug.inject else None
    model = build_model(config).to(device)
    checkpoints = CheckpointManager(
        folder / CHECKPOINTS,
        config.checkpoint.every,
        config.checkpoint.keep,
        last_step=config.train.steps,
        config_hash=config_hash(config),
        versions=versions(),
    )
    state = TrainState(model, build_optimizer(config, model), GateMonitor(config.train.gate), History(config.rollback))
    probe = build_probe(config, device) if config.niah.enabled else None
    telemetry = build_telemetry(config)
    notices = starting_point(config, folder, state, checkpoints)
    summary = _new_summary(config, folder, model, device)
    step = TrainStep(config.train, device, precision)
    clocks = Clocks()
    evaluator = Evaluator(data, step, config.train.validation_batches, config.rollback.watch_rows)
    summary.baseline_loss = data.baseline(config.train.validation_batches)
    trainer = Trainer(config, state, data, step, evaluator, telemetry, checkpoints, probe, FaultInjector(fault), clocks)
    telemetry.open(_run_info(config, folder, state))
    telemetry.event("start", state.step, **data.describe(), parameters=summary.parameters, device=summary.device)
    for notice in notices:
        telemetry.event("notice", state.step, message=notice)
    try:
        trainer.run()
        summary.status = "completed"
    except AbortError as error:
        summary.status, summary.reason = "aborted", str(error)
    except KeyboardInterrupt:
        summary.status, summary.reason = "aborted", "interrupted from the keyboard"
        raise
    except BaseException as error:
        summary.status, summary.reason = "failed", f"{type(error).__name__}: {error}"
        log.exception("the run failed")
        raise
    finally:
        finish(summary, trainer, device)
        telemetry.event("end", state.step, status=summary.status, reason=summary.reason)
        telemetry.close(summary.status, asdict(summary), closing_table(summary))
        checkpoints.close()
    return summary


def _new_summary(config: RunConfig, folder: Path, model: AtlasModel, device: torch.device) -> RunSummary:
    return RunSummary(
        folder=str(folder),
        steps=config.train.steps,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=device_name(device),
        versions=versions(),
        git=git_revision(),
        config_hash=config_hash(config),
    )


def _run_info(config: RunConfig, folder: Path, state: TrainState) -> RunInfo:
    return RunInfo(
        folder,
        config.train.steps,
        config=OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True),  # type: ignore[arg-type]
        versions=versions(),
        start_step=state.step,
        segment=state.segment,
    )
