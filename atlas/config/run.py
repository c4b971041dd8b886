"""The configuration of one run, and the checks across settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from html import escape
from typing import Any

from omegaconf import OmegaConf

from atlas.config.calibration import CalibrationConfig
from atlas.config.choices import Choices
from atlas.config.errors import require
from atlas.config.keys import plain
from atlas.config.levels import RECALL
from atlas.config.model import ChunkSizeConfig, ModelConfig
from atlas.config.niah import NIAHConfig
from atlas.config.parallel import ParallelConfig, ParallelKind
from atlas.config.rules import Rule
from atlas.config.stage2 import Stage2Config
from atlas.config.sweep import SweepConfig
from atlas.config.training import CheckpointConfig, GateAction, RollbackConfig, TrainConfig
from atlas.config.watch import WatchConfig

MOST_THREADS = 1024  # more threads than a machine can start would end the process
MOST_SAMPLES = 100  # validation texts that are continued
MOST_PROCESSES = 64  # of one machine


class DeviceKind(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(StrEnum):
    auto = "auto"  # bf16 on CUDA, fp32 elsewhere
    fp32 = "fp32"
    bf16 = "bf16"


class Kernels(StrEnum):
    auto = "auto"  # on a CPU `compiled` where there is a compiler, on a GPU `triton` where it takes the case
    compiled = "compiled"  # C++, for a CPU; refused where there is no compiler or a width does not fit
    triton = "triton"  # for a GPU; refused where they cannot be used
    torch = "torch"


class StepGraphs(StrEnum):
    auto = "auto"  # on a GPU, unless it would be wrong
    always = "always"  # refused where it would be wrong
    never = "never"


TRITON_RULES = (Rule.gd, Rule.momentum)
TRITON_WIDTHS = (16, 32, 64)  # of heads, features and hidden layer; 128 needs more shared memory than an H100 has
TRITON_CHUNK = 128  # tokens: longer chunks that tokens read into do not fit


@dataclass
class DeviceConfig(Choices, prefix="device."):
    kind: DeviceKind = DeviceKind.auto
    precision: Precision = Precision.auto
    threads: int = 0  # CPU threads; 0 = torch's own choice
    kernels: Kernels = Kernels.auto  # compiled C++ (CPU), Triton (GPU, the memory's chunks), or PyTorch's operations
    processes: int = 1  # that train the run together, each on a GPU of its own or on its share of the cores
    graph: StepGraphs = StepGraphs.auto  # a training step as one CUDA graph
    compile: bool = False  # the blocks by torch.compile in training; the first step takes a minute or more

    def __post_init__(self) -> None:
        allowed = f"in [0, {MOST_THREADS}] (0 = torch's own choice)"
        require(0 <= self.threads <= MOST_THREADS, "device.threads", self.threads, allowed)
        fits = 1 <= self.processes <= MOST_PROCESSES
        require(
            fits,
            "device.processes",
            self.processes,
            f"in [1, {MOST_PROCESSES}] (torchrun or Slurm starts those of several machines)",
        )


def number_of_processes(device: DeviceConfig, parallel: ParallelConfig, launched: int) -> int:
    """Of a run of which a launcher has started `launched` processes; 0: the run starts `device.processes` itself.

    Raises `ConfigError` where the settings do not go together with it.
    """
    fits = launched == 0 or device.processes in (1, launched)
    allowed = f"{launched}, or left out: the launcher has started {launched}"
    require(fits, "device.processes", device.processes, allowed)
    processes = launched or device.processes
    parallel.groups(processes)
    return processes


@dataclass
class TelemetryConfig:
    every: int = 100  # steps between rows of metrics.jsonl; the first 100 steps have ten
    metrics: list[str] = field(default_factory=list)  # dotted names of functions of your own: columns `own/...`
    samples: int = 0  # validation texts that the model continues after each validation: events of kind `sample`
    sample_tokens: int = 64  # of a continuation, and at most of its prompt

    def __post_init__(self) -> None:
        require(self.every >= 1, "telemetry.every", self.every, ">= 1")
        allowed = f"in [0, {MOST_SAMPLES}] (0 = none)"
        require(0 <= self.samples <= MOST_SAMPLES, "telemetry.samples", self.samples, allowed)
        require(self.sample_tokens >= 1, "telemetry.sample_tokens", self.sample_tokens, ">= 1")


@dataclass
class DebugConfig:
    inject: str | None = None  # KIND@STEP[:SIZE][:always]: a rehearsed fault
    profile: str | None = None  # FIRST:LAST: where the time of these steps goes, in trace.json.gz and profile.txt

    def __post_init__(self) -> None:
        require(self.inject != "", "debug.inject", self.inject, "KIND@STEP[:SIZE][:always], or left out")
        require(self.profile != "", "debug.profile", self.profile, "FIRST:LAST, or left out")


@dataclass
class RunConfig(Choices):
    """One run. `data`, `optim` and `logger` are components: a `_target_` with its keyword arguments."""

    model: ModelConfig = field(default_factory=ModelConfig)
    chunk_size: ChunkSizeConfig = field(default_factory=ChunkSizeConfig)
    data: dict[str, Any] = field(default_factory=dict)
    accept_changed_data: bool = False  # a continued run may use another text than it was trained on
    optim: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    niah: NIAHConfig = field(default_factory=NIAHConfig)
    rollback: RollbackConfig = field(default_factory=RollbackConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 0
    resume: str | None = None
    init_from: str | None = None
    trust: list[str] = field(default_factory=list)  # modules of your own whose components may be executed

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2**63)")
        for key, folder in (("resume", self.resume), ("init_from", self.init_from)):  # "" would be the current folder
            require(folder is None or bool(folder.strip()), key, folder, "a run or a checkpoint, or left out")
        if self.device.processes > 1:  # else a launcher may have started several
            self.train.require_parts(self.parallel.groups(self.device.processes), self.parallel.context)
        if self.parallel.context > 1:
            self._check_context()
        sliced, carried = self.parallel.kind is ParallelKind.fsdp, self.train.carry_memory
        allowed = "false with parallel.kind=fsdp (parallel.kind=ddp carries memories)"
        require(not (sliced and carried), "train.carry_memory", carried, allowed)
        never = "gate" in self.rollback.triggers and self.train.gate.monitor is GateAction.off
        allowed = "without gate, which train.gate.monitor=off never tells of"
        require(not never, "rollback.triggers", self.rollback.triggers, allowed)
        self.watch.check_rollbacks()
        if self.stage2.enabled:
            self._check_stage2()
        if self.model.memory.enabled:
            self._check_chunks()
            if self.device.kernels is Kernels.triton:
                self._check_triton()
        allowed = "false with telemetry.every=1: steps that are logged run without the compiled blocks"
        require(not (self.device.compile and self.telemetry.every == 1), "device.compile", True, allowed)
        if self.device.graph is StepGraphs.always:
            self._check_graph()
        if self.niah.enabled and RECALL.name in self.niah.levels:
            self._check_needle_lengths()

    def _check_context(self) -> None:
        """A part of a sequence begins at a shard, and what it takes over has a fixed size."""
        context, sequence, shard = self.parallel.context, self.train.sequence, self.chunk_size.shard
        whole = f"such that train.sequence={sequence} is cut into parts of whole shards (chunk_size.shard={shard})"
        require(sequence % (context * shard) == 0, "parallel.context", context, whole)
        possible = {
            "train.carry_memory=true": not self.train.carry_memory,
            "model.window=0: attention to all tokens is not cut": self.model.window > 0,
            "data.documents=separate: its rows are of any length": self.data.get("documents") != "separate",
        }
        for reason, holds in possible.items():
            require(holds, "parallel.context", context, f"1 with {reason}")

    def _check_stage2(self) -> None:
        memory, whole = self.model.memory.enabled, self.parallel.kind is not ParallelKind.fsdp
        require(memory, "stage2.enabled", True, "false with model.memory.enabled=false")
        require(whole, "stage2.enabled", True, "false with parallel.kind=fsdp (parallel.kind=ddp has Stage 2)")
        allowed = "false with stage2.enabled=true: every chunk size would be compiled anew"
        require(not self.device.compile, "device.compile", True, allowed)
        start, shard = self.stage2.start, self.chunk_size.shard
        require(start <= shard, "stage2.start", start, f"<= chunk_size.shard={shard}")

    def _check_triton(self) -> None:
        """The kernels multiply in bf16, and exist for some rules, widths and chunks."""
        memory, head_width = self.model.memory, self.model.width // self.model.heads
        chunks, size = self.chunk_size, self.chunk_size.global_size
        widths = f"widths are powers of two from {TRITON_WIDTHS[0]} to {TRITON_WIDTHS[-1]}"
        fits = {
            "device.precision=fp32: the kernels multiply in bf16": self.device.precision is not Precision.fp32,
            f"model.memory.rule={memory.rule}: there are kernels for {' and '.join(TRITON_RULES)}": (
                memory.rule in TRITON_RULES
            ),
            f"a head width of {head_width}: {widths}": head_width in TRITON_WIDTHS,
            f"model.memory.hidden={memory.hidden}: {widths}": memory.hidden in TRITON_WIDTHS,
            f"model.memory.degree={memory.degree}: there are kernels for degree 1": memory.degree == 1,
            f"model.memory.feature_width={memory.feature_width}: {widths}": (
                memory.feature_width in (0, *TRITON_WIDTHS)
            ),
            f"chunk_size.local={chunks.local}: there are kernels for chunks of up to {TRITON_CHUNK} tokens": (
                max(chunks.local) <= TRITON_CHUNK
            ),
            f"chunk_size.global_size={size}: there are kernels for up to {TRITON_CHUNK} tokens and multiples": (
                not memory.use_global or size <= TRITON_CHUNK or size % TRITON_CHUNK == 0
            ),
        }
        for reason, holds in fits.items():
            require(holds, "device.kernels", "triton", f"auto or torch with {reason}")

    def _check_graph(self) -> None:
        for reason in self.no_graph():
            require(False, "device.graph", self.device.graph, f"auto or never with {reason}")

    def no_graph(self) -> list[str]:
        """Settings with which a CUDA graph of the step would be wrong, and why."""
        found = {
            "train.carry_memory=true: a graph repeats the positions that it was recorded at": self.train.carry_memory,
            "debug.inject: a graph does not run the hooks of a fault": self.debug.inject is not None,
            "stage2.enabled=true: a graph repeats the chunks that it was recorded with": self.stage2.enabled,
            "telemetry.every=1: steps that are logged run without it": self.telemetry.every == 1,
        }
        return [reason for reason, holds in found.items() if holds]

    def _repr_html_(self) -> str:
        """In a notebook: the settings as YAML."""
        return f"<pre>{escape(OmegaConf.to_yaml(plain(self)))}</pre>"

    def _check_needle_lengths(self) -> None:
        """A needle that attention can see says nothing about the memory."""
        reach = self.model.layers * (self.model.window - 1)
        for length in self.niah.lengths:
            allowed = f"> {reach} tokens, the reach of attention (model.layers * (model.window - 1)); {length} is not"
            require(length > reach, "niah.lengths", self.niah.lengths, allowed)

    def _check_chunks(self) -> None:
        sequence, shard = self.train.sequence, self.chunk_size.shard
        padded = self.train.pad_shards
        require(
            shard <= sequence or padded,
            "chunk_size.shard",
            shard,
            f"<= train.sequence={sequence} (or set train.pad_shards=true)",
        )
        require(
            sequence % shard == 0 or padded,
            "train.sequence",
            sequence,
            f"a multiple of chunk_size.shard={shard} (or set train.pad_shards=true)",
        )
        carried = self.train.carry_memory
        if self.model.memory.use_global:
            require(
                self.chunk_size.global_size <= sequence or carried,
                "chunk_size.global_size",
                self.chunk_size.global_size,
                f"<= train.sequence={sequence}, else the global memory is never written"
                " (or set train.carry_memory=true)",
            )
        if carried:
            grid_fits = sequence % shard == 0 and sequence % min(self.chunk_size.global_size, sequence) == 0
            require(
                grid_fits,
                "train.carry_memory",
                carried,
                f"used with train.sequence={sequence} a multiple of chunk_size.shard and of chunk_size.global_size",
            )
