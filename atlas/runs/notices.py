"""What a user is told before step 1, a line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from atlas.config import Kernels, Rule, RunConfig, require
from atlas.config.watch import WatchAction
from atlas.data.source import DataSource
from atlas.kernels import gpu
from atlas.kernels.call import GRANULE, available
from atlas.kernels.library import missing
from atlas.ops.features import feature_counts
from atlas.parallel.ranks import Ranks
from atlas.runs.recall_warnings import recall_warnings
from atlas.runs.steady_data import data_warnings
from atlas.runs.unread_settings import unread_settings
from atlas.telemetry.run_files import RunFiles

MOST_CUT = 0.5  # of the tokens
SCANNED = {Rule.gd, Rule.momentum, Rule.muon}  # whose chunks have compiled kernels


def start_notices(config: RunConfig, device: torch.device) -> list[str]:
    """Of the machine and the settings. Raises `ConfigError` for kernels that are insisted on and do not fit."""
    machine = [*missing_kernels(device), *_odd_widths(config, device)]
    rollback = [*_nothing_restored(config), *_fewer_watched(config), *_never_probed(config)]
    return [*machine, *_long_warmup(config), *rollback]


def damaged_lines(folder: Path) -> list[str]:
    """A line where an earlier start's events or rows cannot all be read."""
    files = RunFiles(folder, strict=False)
    _ = files.events, files.rows
    return files.problems


def start_warnings(
    config: RunConfig, data: DataSource, described: Mapping[str, object], step: int, ranks: Ranks
) -> list[str]:
    """Of the data, which `described` describes, and of settings that nothing reads; `step`: the first to be trained.
    Every rank calls it."""
    return [
        *(data.corpus.warnings if data.corpus else ()),
        *recall_warnings(config, data),
        *unread_settings(config),
        *ranks.from_first(lambda: data_warnings(data, step)),
        *_cut_documents(described),
    ]


def missing_kernels(device: torch.device) -> list[str]:
    """A line where kernels are wanted and cannot be had."""
    if device.type == "cuda":
        reason = gpu.missing().partition(": ")[2]
        return [f"no Triton kernels, so steps on the GPU take longer: {reason}"] if reason and gpu.wanted() else []
    return [f"no compiled kernels, so steps on the CPU take longer: {reason}"] if (reason := missing()) else []


def _odd_widths(config: RunConfig, device: torch.device) -> list[str]:
    """A line where compiled kernels are in use and do not take the model's widths."""
    model, memory = config.model, config.model.memory
    head = model.width // model.heads
    widths = {f"a head width of {head}": head, f"model.feedforward={model.feedforward}": model.feedforward}
    if memory.enabled:
        widths[f"model.memory.hidden={memory.hidden}"] = memory.hidden
        if memory.degree > 1 and memory.rule in SCANNED and not memory.own_rule:
            features = sum(feature_counts(memory.feature_width or head, memory.degree))
            widths[f"{features} features of model.memory.degree={memory.degree}"] = features
    odd = ", ".join(name for name, width in widths.items() if width % GRANULE)
    if not odd or device.type != "cpu" or not available():
        return []
    kernels, why = config.device.kernels, f"the kernels take multiples of {GRANULE}"
    require(kernels is not Kernels.compiled, "device.kernels", kernels, f"auto or torch with {odd}: {why}")
    return [f"no compiled kernels for {odd}, so steps take longer: {why}"]


def _cut_documents(described: Mapping[str, object]) -> list[str]:
    """A line where rows are to hold one document each, and most have no room for it. Packed rows cut by design."""
    cut = described.get("documents_cut")
    if "padding" not in described or not isinstance(cut, float) or cut <= MOST_CUT:
        return []
    why = f"{cut:.0%} of the text belongs to documents that are longer than a row, so rows hold parts of documents"
    return [f"{why}: a longer train.sequence keeps them whole"]


def _nothing_restored(config: RunConfig) -> list[str]:
    """A line where watchers are to roll back, and rollback is off or only observes."""
    rollback = config.rollback
    wanted = [name for name, action in asdict(config.watch).items() if action == WatchAction.rollback]
    if not wanted or (rollback.enabled and not rollback.observe):
        return []
    setting = "rollback.observe=true" if rollback.observe else "rollback.enabled=false"
    return [f"{', '.join(f'watch.{name}=rollback' for name in wanted)}: restores nothing with {setting}"]


def _never_probed(config: RunConfig) -> list[str]:
    """A line where probes are to roll back, and there are none."""
    never = "niah" in config.rollback.triggers and not config.niah.enabled
    return ["rollback.triggers has niah, and niah.enabled=false: no probe can be its trigger"] if never else []


def _fewer_watched(config: RunConfig) -> list[str]:
    """A line where more rows are to be watched than one validation batch has."""
    wanted, rows = config.rollback.watch_rows, config.train.batch_size
    return [f"rollback.watch_rows={wanted}: a batch has {rows}, which are watched"] if wanted > rows else []


def _long_warmup(config: RunConfig) -> list[str]:
    """A line where the learning rate rises to the very end."""
    warmup, steps = config.optim.get("warmup"), config.train.steps
    if not isinstance(warmup, int) or warmup < steps:
        return []
    return [f"optim.warmup={warmup} leaves none of the {steps} steps: the learning rate rises to the last one"]
