"""Where the Triton kernels are refused, and what is said instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from warnings import catch_warnings

import pytest
import torch

import atlas
from atlas.config import ConfigError, DeviceConfig, DeviceKind, Kernels, Precision
from atlas.kernels import gpu
from atlas.ops.dual_form import ChunkInputs
from atlas.ops.fast_weights import FastWeights
from atlas.ops.rules.rule import ChunkEnd
from atlas.ops.whole_chunks import triton
from atlas.ops.whole_chunks.triton_scan import Variant
from atlas.runs.build import prepare_device
from atlas.runs.environment import device_name
from atlas.runs.notices import missing_kernels
from atlas.runs.ready_kernels import require_kernels, variants
from atlas.telemetry.run_files import RunFiles
from tests.integration.small_runs import JOB
from tests.unit.ops.test_compiled_scan import inputs

GIVEN_UP = "the kernel of chunks of 16 tokens could not be compiled: RuntimeError: out of registers"


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield
    gpu.use(Kernels.auto)


def on_gpu(monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int] = (9, 0), installed: bool = True) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    monkeypatch.setattr("atlas.kernels.gpu.find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr("atlas.kernels.gpu.version", lambda name: "3.7.1")


def refusal(kernels: Kernels = Kernels.triton) -> str:
    with pytest.raises(ConfigError) as error:
        gpu.use(kernels)
    return str(error.value)


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refusal() == "device.kernels=triton: must be auto, compiled or torch here: no GPU was found"
    assert not gpu.takes(torch.empty(0))
    on_gpu(monkeypatch, installed=False)
    assert refusal() == (
        "device.kernels=triton: must be auto or torch here: triton is not installed "
        "(it comes with the CUDA builds of torch)"
    )
    on_gpu(monkeypatch, capability=(7, 5))
    assert refusal() == (
        "device.kernels=triton: must be auto or torch on this GPU: its compute capability 7.5 is below 8.0"
    )
    on_gpu(monkeypatch, capability=(8, 0))
    gpu.use(Kernels.triton)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_rows_that_32_bits_cannot_count_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "usable", lambda **_: True)
    width = 3 * 1024  # numbers from a token to the next, where q, k and v lie side by side
    fits = (2**31 - 64) // width + 1
    for tokens in (fits, fits + 1):
        lies = torch.empty_strided((2, tokens, 64), (0, width, 1), device="meta")
        assert gpu.takes(lies) == (tokens == fits)


def test_a_run_on_a_cpu_refuses_it() -> None:
    with pytest.raises(
        ConfigError, match=r"^device.kernels=triton: must be auto, compiled or torch here: no GPU was found$"
    ):
        prepare_device(DeviceConfig(kernels=Kernels.triton))


def test_a_run_sent_to_the_cpu_of_a_machine_with_a_gpu_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch)
    with pytest.raises(ConfigError, match=r"^device.kernels=triton: must be auto, compiled or torch on a CPU$"):
        prepare_device(DeviceConfig(kind=DeviceKind.cpu, kernels=Kernels.triton))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["device.precision=fp32"], "device.precision=fp32: the kernels multiply in bf16"),
        (["model.memory.rule=muon"], "model.memory.rule=muon: there are kernels for gd and momentum"),
        (["model.width=96"], "a head width of 48: widths are powers of two from 16 to 64"),
        (["model.memory.hidden=48"], "model.memory.hidden=48: widths are powers of two from 16 to 64"),
        (["model.memory.hidden=128"], "model.memory.hidden=128: widths are powers of two from 16 to 64"),
        (
            ["chunk_size.local=[256]", "chunk_size.shard=256"],
            "chunk_size.local=[256]: there are kernels for chunks of up to 128 tokens",
        ),
        (
            ["chunk_size.global_size=192", "chunk_size.shard=192", "train.sequence=384"],
            "chunk_size.global_size=192: there are kernels for up to 128 tokens and multiples",
        ),
        (["model.memory.degree=2"], "model.memory.degree=2: there are kernels for degree 1"),
        (["model.memory.feature_width=8"], "model.memory.feature_width=8: widths are powers of two from 16 to 64"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_configuration_that_they_cannot_take_is_refused(overrides: list[str], reason: str) -> None:
    atlas.compose(overrides)  # without them it is fine
    with pytest.raises(ConfigError) as error:
        atlas.compose(["device.kernels=triton", *overrides])
    assert str(error.value) == f"device.kernels=triton: must be auto or torch with {reason}"


def test_a_model_without_a_memory_takes_any_kernels() -> None:
    assert atlas.compose(["model=attention_only", "device.kernels=triton", "device.precision=fp32"])


def test_a_gpu_takes_them_in_any_precision_where_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one, the configuration refuses fp32."""
    on_gpu(monkeypatch)
    before = torch.get_float32_matmul_precision()
    try:
        device, precision = prepare_device(DeviceConfig(kernels=Kernels.triton, precision=Precision.fp32))
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cuda.enable_cudnn_sdp(True)
    assert (device.type, precision) == ("cuda", torch.float32)


def test_the_name_of_a_gpu_tells_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch)
    assert gpu.description() == "Triton kernels 3.7.1"
    on_gpu(monkeypatch, installed=False)
    assert gpu.description() == "PyTorch operations (triton is not installed)"
    gpu.use(Kernels.torch)
    assert gpu.description() == "PyTorch operations"


def test_a_run_without_kernels_says_so_at_its_start_and_in_the_name_of_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100")
    on_gpu(monkeypatch)
    assert missing_kernels(cuda) == []
    assert device_name(cuda) == "NVIDIA H100, Triton kernels 3.7.1"
    on_gpu(monkeypatch, installed=False)
    reason = "triton is not installed (it comes with the CUDA builds of torch)"
    assert missing_kernels(cuda) == [f"no Triton kernels, so steps on the GPU take longer: {reason}"]
    assert device_name(cuda) == "NVIDIA H100, PyTorch operations (triton is not installed)"
    on_gpu(monkeypatch, capability=(7, 5))
    reason = "its compute capability 7.5 is below 8.0"
    assert missing_kernels(cuda) == [f"no Triton kernels, so steps on the GPU take longer: {reason}"]
    assert device_name(cuda) == f"NVIDIA H100, PyTorch operations ({reason})"
    gpu.use(Kernels.torch)  # they are not wanted
    assert missing_kernels(cuda) == []
    assert device_name(cuda) == "NVIDIA H100, PyTorch operations"


def test_what_the_kernels_do_not_take_is_left_silently_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Open chunks and the last one that is not whole are no case of theirs: `Scan` hands over whole chunks alone."""
    monkeypatch.setattr(gpu, "takes", lambda tensor: True)
    monkeypatch.setattr(triton, "ready", lambda *variant: True)

    def taken(
        *widths: int, chunk: int = 16, prefix: bool = True, end: ChunkEnd = ChunkEnd.step, double: bool = False
    ) -> bool:
        down, up, *fields = (part.double() if double else part for part in inputs(1, 16, *widths))
        tokens = ChunkInputs(*fields, controls=fields[-1][..., None])
        return triton.takes(end, FastWeights(down, up), tokens, chunk, prefix=prefix)

    assert taken(16, 16, 16)
    assert taken(16, 16, 16, end=ChunkEnd.momentum)
    assert taken(16, 16, 16, chunk=256, prefix=False)
    assert not taken(16, 16, 16, end=ChunkEnd.updates)  # other rules
    assert not taken(16, 16, 153)  # degree 2
    assert not taken(16, 128, 16)  # too large for the chip
    assert not taken(48, 16, 16)
    assert not taken(16, 16, 16, chunk=256)
    assert not taken(16, 16, 16, chunk=200, prefix=False)
    assert not taken(16, 16, 16, double=True)
    assert gpu.news() == []
    assert not recwarn


@pytest.mark.slow
def test_a_run_records_once_that_its_kernels_were_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(*given: object, **named: object) -> bool:
        with catch_warnings(action="ignore"):
            return gpu.ready("chunks of 16 tokens", "RuntimeError: out of registers")

    monkeypatch.setattr(triton, "takes", takes)
    text = Path(__file__).parents[3] / "docs" / "memory.md"
    settings = [*JOB, f"data.paths=[{text}]", "device.precision=bf16", "train.steps=3"]
    atlas.train(atlas.compose(settings), tmp_path / "run")
    warnings = RunFiles(tmp_path / "run").of_kind("warning")
    found = [event["message"] for event in warnings if "kernel" in event["message"]]
    assert found == [f"{GIVEN_UP}; PyTorch's operations do its work"]


def test_a_kernel_that_does_not_compile_is_told_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch)
    for _ in range(2):  # runs in a process
        gpu.use(Kernels.auto)
        with pytest.warns(RuntimeWarning) as told:
            assert not gpu.ready("chunks of 16 tokens", "RuntimeError: out of registers")
        assert not gpu.ready("chunks of 16 tokens", "RuntimeError: out of registers")
        assert gpu.ready("chunks of 32 tokens", "")
        assert [str(one.message) for one in told] == gpu.news() == [f"{GIVEN_UP}; PyTorch's operations do its work"]
        assert gpu.news() == []
        without = "without chunks of 16 tokens (RuntimeError: out of registers)"
        assert gpu.description() == f"Triton kernels 3.7.1, {without}"
    gpu.use(Kernels.auto)
    assert gpu.description() == "Triton kernels 3.7.1"


def test_triton_insists_on_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch)
    gpu.use(Kernels.triton)
    with pytest.raises(ConfigError) as error:
        gpu.ready("chunks of 16 tokens", "RuntimeError: out of registers")
    assert str(error.value) == f"device.kernels=triton: must be auto or torch here: {GIVEN_UP}"


def test_what_keeps_a_kernel_from_a_gpu_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch)
    found = SimpleNamespace(shared_memory_per_block_optin=232_448)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda: found)

    def compiled(shared: int) -> SimpleNamespace:
        return SimpleNamespace(metadata=SimpleNamespace(shared=shared))

    def broken() -> SimpleNamespace:
        raise RuntimeError("out of registers\nmany lines")

    assert gpu.why_not(lambda: compiled(232_448)) == ""
    needs = "RuntimeError: 300000 bytes of shared memory are needed, the GPU has 232448"
    assert gpu.why_not(lambda: compiled(1000), lambda: compiled(300_000)) == needs
    assert gpu.why_not(broken) == "RuntimeError: out of registers"


def test_the_kernels_of_a_run_are_compiled_before_step_1(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch)
    asked: list[Variant] = []
    monkeypatch.setattr(triton, "why_not", lambda variant: asked.append(variant) or "too large")
    cuda = torch.device("cuda")
    gpu.use(Kernels.triton)
    with pytest.raises(ConfigError, match=r"the kernel of chunks of 16 tokens .* could not be compiled: too large"):
        require_kernels(atlas.compose(["chunk_size=c16"]), cuda, torch.bfloat16)
    gpu.use(Kernels.auto)
    asked.clear()
    settings = [
        "chunk_size.local=[8,64,128]",
        "chunk_size.global_size=256",
        "chunk_size.shard=256",
        "model.memory.rule=momentum",
    ]
    with pytest.warns(RuntimeWarning, match="too large"):
        require_kernels(atlas.compose(settings), cuda, torch.bfloat16)
    found = [(one.chunk, one.prefix, one.momentum) for one in asked]
    plain = atlas.compose([one for one in settings if "rule" not in one])
    assert len({str(one) for one in variants(plain)}) == len(asked)  # each has a name of its own
    assert found == [(8, True, True), (64, True, True), (128, True, True), (128, False, False)]
    asked.clear()
    require_kernels(atlas.compose([]), cuda, torch.float32)
    for others in (["model=attention_only"], ["model.memory.rule=muon"], ["model.memory.hidden=128"]):
        require_kernels(atlas.compose(others), cuda, torch.bfloat16)
    assert asked == []


def test_runs_by_the_interpreter_say_so_and_multiply_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("atlas.kernels.gpu.find_spec", lambda name: object())
    monkeypatch.setattr("atlas.kernels.gpu.version", lambda name: "3.7.1")
    with pytest.raises(ConfigError) as error:
        prepare_device(DeviceConfig(kind=DeviceKind.cpu, kernels=Kernels.triton))
    assert str(error.value) == (
        "device.precision=auto: must be bf16 with device.kernels=triton, whose kernels multiply in bf16 "
        "(auto is fp32 on a CPU)"
    )
    settings = DeviceConfig(kind=DeviceKind.cpu, kernels=Kernels.triton, precision=Precision.bf16)
    device, _ = prepare_device(settings)
    assert device_name(device).endswith(", Triton kernels 3.7.1 by the interpreter)")


def test_compiled_blocks_need_a_compiler_and_steps_that_are_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(ConfigError) as error:
        prepare_device(DeviceConfig(kind=DeviceKind.cpu, compile=True))
    assert str(error.value) == "device.compile=true: must be false here: CXX=/nowhere/g++ is not there"
    with pytest.raises(ConfigError) as error:
        atlas.compose(["device.compile=true", "telemetry.every=1"])
    assert str(error.value) == (
        "device.compile=True: must be false with telemetry.every=1: "
        "steps that are logged run without the compiled blocks"
    )
