"""Configuration -> objects. The only caller of `instantiate`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from atlas.checkpoint.contents import MODEL
from atlas.checkpoint.manifest import Manifest
from atlas.config import (
    RECALL,
    VOCABULARY,
    DeviceConfig,
    DeviceKind,
    Kernels,
    NIAHConfig,
    Precision,
    RunConfig,
    require,
)
from atlas.config.composition import load_config
from atlas.data.corpus import stdlib_corpus
from atlas.data.needles import NeedleFormat
from atlas.data.source import DataSource
from atlas.kernels.library import use
from atlas.models.language_model import AtlasModel
from atlas.probes.niah import NIAHProbe
from atlas.runs.spinning import control_spinning
from atlas.runs.start import find_checkpoint, other_model
from atlas.telemetry.console import ConsoleSink
from atlas.telemetry.logger import TelemetryLogger
from atlas.telemetry.run_files import CONFIG_FILE
from atlas.telemetry.sinks import JsonlSink, Sink
from atlas.training.optimizer import ScheduledOptimizer

UNTRAINED_NEEDLES = NeedleFormat(key_bytes=2, value_bytes=1, value_alphabet=16)  # for data without needles
PROBE_VALIDATION_SHARE = 0.1  # of the standard library, for data without text
NO_TEXT_TASKS = frozenset({"single", "multi_key", "multi_query", "mqar"})  # of the recall level, see `build_questions`


def build_model(config: RunConfig) -> AtlasModel:
    """The model with its initial weights, float32 and drawn from `config.seed`, whatever torch's default dtype is.

    The global random state is left as it was.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return AtlasModel(config.model, config.chunk_size, config.model.vocabulary)
    finally:
        torch.set_default_dtype(before)


def with_vocabulary(config: RunConfig, data: DataSource) -> RunConfig:
    """The configuration with a model of the data's vocabulary; a larger one that is asked for stays.

    Raises `ConfigError` for a smaller one.
    """
    wanted, needed = config.model.vocabulary, data.vocabulary
    if wanted == VOCABULARY and needed != VOCABULARY:
        return replace(config, model=replace(config.model, vocabulary=needed))
    require(wanted >= needed, "model.vocabulary", wanted, f">= {needed}, the vocabulary of the data")
    return config


def build_data(config: RunConfig) -> DataSource:
    """The source of the run's batches. Its text is read on the first use of its corpus. Raises `ConfigError`."""
    source: DataSource = _component(
        config.data,
        sequence=config.train.sequence,
        batch_size=config.train.batch_size,
        seed=config.seed,
        steps=config.train.steps,
        carry_memory=config.train.carry_memory,
    )
    return source


def build_optimizer(config: RunConfig, model: torch.nn.Module) -> ScheduledOptimizer:
    """The optimiser of the model's parameters with its learning-rate schedule over the run's steps."""
    optimizer: ScheduledOptimizer = _component(config.optim, model=model, steps=config.train.steps)
    return optimizer


def prepare_device(settings: DeviceConfig) -> tuple[torch.device, torch.dtype]:
    """The device, and the precision of its matrix products. Sets threads and kernels for the process.

    Raises `ConfigError` for `cuda` without a GPU, and for compiled kernels where they cannot be built.
    """
    available = torch.cuda.is_available()
    wanted = settings.kind
    require(wanted is not DeviceKind.cuda or available, "device.kind", wanted.value, "auto or cpu: no GPU was found")
    on_gpu = available and wanted is not DeviceKind.cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    require(
        settings.kernels is not Kernels.compiled or not on_gpu, "device.kernels", "compiled", "auto or torch on a GPU"
    )
    use(settings.kernels if not on_gpu else Kernels.torch)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    control_spinning()
    half = settings.precision is Precision.bf16 or (settings.precision is Precision.auto and on_gpu)
    return device, torch.bfloat16 if half else torch.float32


def build_probe(config: RunConfig, data: DataSource) -> NIAHProbe:
    """The NIAH probes of the run. Text haystacks are the data's validation text, or the standard library's."""
    text = None
    if config.niah.enabled and reads_text(config.niah):
        text = (data.corpus or stdlib_corpus(PROBE_VALIDATION_SHARE)).validation
    needles = data.needles
    if needles is None:
        own = data.corpus if data.vocabulary != VOCABULARY else None
        needles = replace(UNTRAINED_NEEDLES, symbols=own.symbols) if own else UNTRAINED_NEEDLES
    return NIAHProbe(
        config.niah,
        needles,
        sequence=config.train.sequence,
        last_step=config.train.steps,
        text=text,
    )


def reads_text(niah: NIAHConfig) -> bool:
    """Whether a probe needs text: for the keys of the key levels, or as the haystack of a task of recall."""
    return niah.levels != [RECALL.name] or not NO_TEXT_TASKS.issuperset(niah.tasks)


def build_telemetry(config: RunConfig) -> TelemetryLogger:
    """Sinks in order: files, console, and the logger that the configuration names."""
    sinks: list[Sink] = [JsonlSink(), ConsoleSink()]
    if config.logger:
        sinks.append(_component(config.logger))
    return TelemetryLogger(sinks, every=config.telemetry.every)


def load(path: str | Path, trust: Sequence[str] = ()) -> tuple[AtlasModel, RunConfig]:
    """The trained model of a run folder (its newest sound checkpoint) or of a checkpoint folder, and its configuration.

    The model is on the CPU, in evaluation mode. A damaged checkpoint is skipped with a warning, and the one before it
    is used. `trust` names further modules whose components the run may use.

    Raises `ConfigError` for a folder that is neither, or has no sound checkpoint.
    """
    model, config, _ = load_checkpointed(path, trust)
    return model, config


def load_checkpointed(path: str | Path, trust: Sequence[str] = ()) -> tuple[AtlasModel, RunConfig, Manifest]:
    """As `load`, with the manifest of the checkpoint."""
    payload, manifest, passed_over = find_checkpoint(Path(path), "path")
    for notice in passed_over:
        warnings.warn(notice, stacklevel=2)
    config = load_config(manifest.path.parents[1] / CONFIG_FILE, trust)
    try:
        weights = payload[MODEL]
        if config.model.layers > len(weights):  # every layer has several; that many would take for ever to build
            raise RuntimeError(f"model.layers={config.model.layers}, it has {len(weights)} tensors")
        with torch.device("meta"):  # compares the shapes: settings may ask for far more memory than the weights take
            build_model(config).load_state_dict(weights, assign=True)
        model = build_model(config)
        model.load_state_dict(weights)
    except Exception as error:  # plain data of another shape fails in many ways
        raise other_model("path", manifest, error) from error
    return model.eval(), config, manifest


def _component(settings: Mapping[str, Any], **handed_over: Any) -> Any:
    """Instantiate a component from its keys in YAML and the run's arguments (`components.HANDED_OVER`)."""
    return instantiate({**settings, "_partial_": True, "_convert_": "all"})(**handed_over)
