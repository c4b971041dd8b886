"""The end of a run: its final numbers, and the files that keep them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import Any

from atlas.config import level_of
from atlas.config.composition import save_config
from atlas.models.flops import flops_per_token
from atlas.models.plan import ChunkPlan
from atlas.report.heatmap import draw_heatmaps
from atlas.runs.baselines import comparable
from atlas.runs.closing_table import closing_table
from atlas.runs.environment import PeakMemory, device_name
from atlas.runs.peak_flops import measured_peak
from atlas.runs.summary import RunSummary
from atlas.telemetry.room import when_there_is_room
from atlas.telemetry.run_files import CONFIG_FILE, RunFiles
from atlas.telemetry.sinks import TelemetryError
from atlas.training.observed_step import Observed
from atlas.training.rollback.threshold import write_suggestion
from atlas.training.trainer import Trainer

HEATMAP_FILE = "niah_training.png"
LAST_LOSSES = ("loss", "perplexity", "loss/recall")
GATES = ("mean", "std", "polarised")
OVERHEADS = (
    "probe",
    "watch",
    "gates",
    "norms",
    "telemetry",
    "checkpoint",
    "validation",
    "samples",
    "rollback",
    "calibration",
    "watchers",
)


def finish(summary: RunSummary, trainer: Trainer, peak: PeakMemory) -> None:
    """Fill in the final numbers. Clocks and speed of a resumed run are those of this start only."""
    state, clocks = trainer.state, trainer.clocks
    summary.step, summary.tokens = state.step, state.tokens
    summary.segment, summary.rollbacks = state.segment, state.rollbacks
    summary.seconds = {name: round(seconds, 3) for name, seconds in clocks.seconds.items()}
    summary.overhead = {name: clocks.share(name) for name in OVERHEADS}
    if trainer.trained_tokens:
        summary.tokens_per_second = trainer.trained_tokens / clocks.seconds["train"]
        _take_utilisation(summary, trainer)
    summary.peak_memory_bytes = peak.read()
    summary.device = device_name(trainer.step.device)  # kernels may have been given up since the start
    summary.niah = {result.level: result.describe() for result in trainer.measurements.probe_results}
    if trainer.last is not None:
        _take_last_step(summary, trainer, trainer.last)
    if trainer.config.stage2.enabled and state.step > 0:
        steps = {"first": 1, "last": state.step}
        summary.local_chunks = {name: [*ChunkPlan.at_step(trainer.config, n).local] for name, n in steps.items()}
    if (use := trainer.measurements.memory_use) is not None:
        summary.memory_use = {"step": use.step, "on": use.on, "off": use.off, "frozen": use.frozen}
    folder = Path(summary.folder)
    with suppress(OSError, ValueError, LookupError, TypeError):  # files that another program changed
        _take_record(summary, folder)
    _take_comparisons(summary, trainer)
    if summary.calibration:
        summary.calibration["seconds"] = round(clocks.seconds.get("calibration", 0.0), 3)
    if trainer.config.rollback.observe and state.step > 0:
        try:
            trainer.telemetry.event("notice", state.step, message=write_suggestion(folder, state.history.deltas))
        except (OSError, TelemetryError) as error:
            print(f"warning: the suggested rollback threshold was not written: {error}", file=sys.stderr)


def _take_utilisation(summary: RunSummary, trainer: Trainer) -> None:
    """The share of the devices' peak that training used; it is measured on this rank, and taken times their number."""
    config, step = trainer.config, trainer.step
    summary.flops_per_token = flops_per_token(config.model, config.chunk_size, config.train.sequence).training
    with suppress(RuntimeError):  # of a device without room, or one that the run has left broken
        peak = measured_peak(step.device, step.precision, trainer.clocks.seconds["train"])
        summary.peak_flops = peak * trainer.ranks.world
    if summary.peak_flops and summary.tokens_per_second:
        summary.flops_utilisation = summary.flops_per_token * summary.tokens_per_second / summary.peak_flops


def _take_last_step(summary: RunSummary, trainer: Trainer, last: Observed) -> None:
    result, validation = last.result, trainer.measurements.validation
    summary.loss, summary.perplexity, summary.recall_loss = result.loss, result.perplexity, result.recall
    summary.validation_loss = validation[1] if validation else None
    if last.gates is not None:
        summary.gate_mean, summary.gate_std, summary.gate_polarised = last.gates


def _take_comparisons(summary: RunSummary, trainer: Trainer) -> None:
    if summary.validation_loss is not None:
        if summary.step == summary.steps and trainer.config.model.memory.enabled:
            summary.baselines = comparable(trainer.config, summary.parameters, summary.data_digest)
        summary.validation_bits_per_byte = summary.validation_loss / log(2) / summary.bytes_per_token


def _take_record(summary: RunSummary, folder: Path) -> None:
    """Read what covers all starts of the run: warnings, rollbacks, and what an earlier start measured at this step."""
    files = RunFiles(folder, strict=False)
    warnings = (str(event.get("message")) for event in files.of_kind("warning"))
    summary.warnings = list(dict.fromkeys(warnings))  # each start repeats what it starts with
    # Calibrated at the start, measured at the end: older runs call both calibration.
    for event in files.of_kind("calibration", "reset_shock"):
        if event["kind"] == "calibration" or event.get("step") == summary.step:  # not where an earlier start ended
            found = _without(event, "kind", "step", "time", "message")
            summary.calibration = {"tokens": 0, "attempts": 0} | summary.calibration | found
    summary.watch = [_without(event, "kind", "time") for event in files.of_kind("watch")]
    summary.history = [_without(event, "time") for event in files.of_kind("spike", "rollback")]
    # Rows of later steps are of what a rollback has undone.
    rows = [row for row in files.rows if row["step"] <= summary.step] if summary.loss is None else []
    if rows:
        last = rows[-1]
        if "memory_use/on" in last and not summary.memory_use:
            modes = {mode: last[f"memory_use/{mode}"] for mode in ("on", "off", "frozen")}
            summary.memory_use = {"step": last["step"], **modes}
        summary.loss, summary.perplexity, summary.recall_loss = (last[key] for key in LAST_LOSSES)
        summary.validation_loss = last.get("validation/loss")
        summary.gate_mean, summary.gate_std, summary.gate_polarised = (last[f"gate/{key}"] for key in GATES)
    probed = []
    for event in files.of_kind("probe", "rollback"):
        if event["kind"] == "probe" and event.get("step") == summary.step:
            probed.append(event)
        elif event["kind"] == "rollback" and event["step"] < summary.step:
            probed = []  # undone
    summary.niah = summary.niah or {event["level"]: _without(event, "kind", "time", "step") for event in probed}


def _without(event: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in keys}


def close(summary: RunSummary, trainer: Trainer) -> None:
    """Write summary.json and close the telemetry. Each write is tried even if another one fails; failures are printed.

    If the disk is full, the telemetry is closed before the summary waits for room: the console then shows how the run
    ended. Raises the first failure if the run is completed otherwise.
    """
    refusals: list[Exception] = []
    with suppress(OSError):
        summary.write()
    actions: tuple[Callable[[], None], ...] = (
        lambda: _send_heatmap(trainer, Path(summary.folder)),
        lambda: trainer.telemetry.event("end", summary.step, status=summary.status, reason=summary.reason),
        lambda: trainer.telemetry.close(summary.status, asdict(summary), closing_table(summary)),
        lambda: when_there_is_room(summary.write),
        lambda: _keep_config(trainer, Path(summary.folder) / CONFIG_FILE),
    )
    for action in actions:
        try:
            action()
        except Exception as error:  # a picture fails in many ways
            failure = f"{summary.folder}: {error.strerror}" if isinstance(error, OSError) else repr(error)
            failure = str(error) if isinstance(error, TelemetryError) else failure
            print(f"warning: {failure}; this run is {summary.status}", file=sys.stderr)
            refusals.append(error)
    if refusals and summary.status == "completed":
        raise refusals[0]


def _send_heatmap(trainer: Trainer, folder: Path) -> None:
    """Give the loggers that take pictures the needles of the last probe, depth by length."""
    if not trainer.telemetry.takes_pictures:
        return
    grids = [result.record()["cells"] for result in trainer.measurements.probe_results if level_of(result.level).grid]
    cells = [cell for grid in grids for cell in grid]
    if not cells:
        return
    file, step = folder / HEATMAP_FILE, trainer.state.step
    draw_heatmaps(cells, f"{folder.name}, step {step}: needles found, %", file)
    trainer.telemetry.picture("niah/needles found", file, step)


def _keep_config(trainer: Trainer, path: Path) -> None:
    """Write config.yaml again if the run folder was removed during the run, so that the run can be resumed."""
    if not path.exists():
        save_config(trainer.config, path)
