"""Configuration -> objects. The only caller of `instantiate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from atlas.config import (
    RECALL,
    VOCABULARY,
    ConfigError,
    DeviceConfig,
    DeviceKind,
    Kernels,
    NIAHConfig,
    Precision,
    RunConfig,
    StepGraphs,
    require,
)
from atlas.config.components import loggers
from atlas.data.corpus import stdlib_corpus
from atlas.data.needles import NeedleFormat
from atlas.data.source import DataSource
from atlas.kernels import gpu
from atlas.kernels.compiler import CompileError, find_compiler
from atlas.kernels.gpu import Capture
from atlas.kernels.library import use
from atlas.models.language_model import AtlasModel
from atlas.parallel.ranks import ALONE, Ranks
from atlas.probes.niah import NIAHProbe
from atlas.runs.spinning import control_spinning
from atlas.telemetry.console import ConsoleSink
from atlas.telemetry.logger import TelemetryLogger
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


def prepare_device(settings: DeviceConfig, ranks: Ranks = ALONE) -> tuple[torch.device, torch.dtype]:
    """The device, and the precision of its matrix products. Sets threads and kernels for the process.

    Raises `ConfigError` for `cuda` without a GPU, for a rank without one of its own, and for kernels that cannot be
    built or used here.
    """
    available = torch.cuda.is_available()
    wanted = settings.kind
    require(wanted is not DeviceKind.cuda or available, "device.kind", wanted.value, "auto or cpu: no GPU was found")
    on_gpu = available and wanted is not DeviceKind.cpu
    device = torch.device("cuda" if on_gpu else "cpu")
    if on_gpu and ranks.world > 1:
        found, needed = torch.cuda.device_count(), ranks.local_rank + 1
        allowed = f"cpu: rank {ranks.rank} is process {needed} of its machine, which has {found} GPUs"
        require(needed <= found, "device.kind", wanted.value, allowed)
        device = torch.device("cuda", ranks.local_rank)
        torch.cuda.set_device(device)
    kernels = settings.kernels
    require(kernels is not Kernels.compiled or not on_gpu, "device.kernels", kernels, "auto, triton or torch on a GPU")
    always = settings.graph is StepGraphs.always
    require(on_gpu or not always, "device.graph", settings.graph, "auto or never on a CPU")
    gpu.use(kernels)
    for_cpu = on_gpu or gpu.interpreted() or wanted is not DeviceKind.cpu
    require(kernels is not Kernels.triton or for_cpu, "device.kernels", kernels, "auto, compiled or torch on a CPU")
    use(Kernels.torch if on_gpu or kernels is Kernels.triton else kernels)
    if on_gpu:
        torch.set_float32_matmul_precision("high")  # TF32: without it float32 products do not use the tensor cores
        # cuDNN's backward pass of attention with a mask is wrong in some shapes (pytorch issue 196678, from 2.11 on).
        torch.backends.cuda.enable_cudnn_sdp(False)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    control_spinning()
    half = settings.precision is Precision.bf16 or (settings.precision is Precision.auto and on_gpu)
    allowed = "bf16 with device.kernels=triton, whose kernels multiply in bf16 (auto is fp32 on a CPU)"
    require(half or on_gpu or kernels is not Kernels.triton, "device.precision", settings.precision, allowed)
    if settings.compile and not on_gpu:
        _require_compiler()
    return device, torch.bfloat16 if half else torch.float32


def _require_compiler() -> None:
    """torch.compile compiles C++ for a CPU."""
    try:
        find_compiler()
    except CompileError as error:
        raise ConfigError(f"device.compile=true: must be false here: {error}") from error


def graph_capture(config: RunConfig, device: torch.device, ranks: Ranks = ALONE) -> Capture | None:
    """What records the steps as a CUDA graph; None where they run without one.

    Raises `ConfigError` where a graph is insisted on and several processes train.
    """
    wanted = config.device.graph
    allowed = "auto or never with several processes: hooks sum the gradients, and a graph does not run hooks"
    require(ranks.world == 1 or wanted is not StepGraphs.always, "device.graph", wanted, allowed)
    possible = device.type == "cuda" and ranks.world == 1 and not config.no_graph()
    return gpu.cuda_capture if possible and wanted is not StepGraphs.never else None


def build_probe(config: RunConfig, data: DataSource) -> NIAHProbe:
    """The NIAH probes of the run. Text haystacks are the data's validation text, or the standard library's."""
    text = None
    if config.niah.enabled and reads_text(config.niah):
        text = (data.corpus or stdlib_corpus(PROBE_VALIDATION_SHARE)).validation
    needles = data.needles
    if needles is None:
        own = data.corpus if data.vocabulary != VOCABULARY else None
        needles = replace(UNTRAINED_NEEDLES, symbols=own.symbols) if own else UNTRAINED_NEEDLES
    return NIAHProbe(config.niah, needles, sequence=config.train.sequence, text=text)


def reads_text(niah: NIAHConfig) -> bool:
    """Whether a probe needs text: for the keys of the key levels, or as the haystack of a task of recall."""
    return niah.levels != [RECALL.name] or not NO_TEXT_TASKS.issuperset(niah.tasks)


def build_telemetry(config: RunConfig, ranks: Ranks = ALONE) -> TelemetryLogger:
    """Sinks in order: files, console, and the logger that the configuration names. None but on rank 0."""
    sinks: list[Sink] = [JsonlSink(), ConsoleSink()] if ranks.first else []
    if ranks.first:
        sinks += [_component(settings) for settings in loggers(config.logger).values()]
    return TelemetryLogger(sinks, every=config.telemetry.every)


def _component(settings: Mapping[str, Any], **handed_over: Any) -> Any:
    """Instantiate a component from its keys in YAML and the run's arguments (`components.HANDED_OVER`).

    Raises `ConfigError`, also of a part of it: Hydra makes the parts first, and wraps what they raise.
    """
    try:
        made = instantiate({**settings, "_partial_": True, "_convert_": "all"})
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from error
        raise
    return made(**handed_over)
