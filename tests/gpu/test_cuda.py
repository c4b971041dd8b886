"""What must hold on a GPU as well. Skipped without one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import atlas
from atlas.config import DeviceConfig, DeviceKind
from atlas.ops.banded_attention.torch import Prefix, block_products, one_kernel
from atlas.runs.build import prepare_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_model_gives_what_it_gives_on_the_cpu() -> None:
    torch.set_float32_matmul_precision("highest")  # a run before may have chosen TF32
    config = atlas.compose(["chunk_size=set_a"])
    model = atlas.build_model(config)
    tokens = torch.randint(0, 256, (2, 512), generator=torch.Generator().manual_seed(0))
    on_cpu = model(tokens)
    on_gpu = model.cuda()(tokens.cuda())
    torch.testing.assert_close(on_gpu.logits.cpu(), on_cpu.logits, rtol=1e-3, atol=1e-3)


def test_a_run_in_bf16_learns(tmp_path: Path) -> None:
    config = atlas.compose(["device=cuda", "niah=off", "logger=none", "train.steps=60", "telemetry.every=20"])
    run = atlas.train(config, tmp_path / "run")
    assert run.status == "completed"
    assert run.validation_loss < 3.5


def test_triton_kernels_train_as_pytorchs_operations(tmp_path: Path) -> None:
    settings = ["device=cuda", "niah=off", "logger=none", "rollback=off", "train.steps=60", "telemetry.every=20"]
    losses = {}
    for kernels in ("triton", "torch"):
        run = atlas.train(atlas.compose([*settings, f"device.kernels={kernels}"]), tmp_path / kernels)
        losses[kernels] = run.validation_loss
        assert ("Triton kernels" in run.device) == (kernels == "triton")
    assert abs(losses["triton"] - losses["torch"]) < 0.05


def test_a_stopped_run_goes_on_bitwise(tmp_path: Path) -> None:
    settings = ["device=cuda", "niah=off", "logger=none", "train.steps=40", "checkpoint.every=20", "telemetry.every=20"]
    whole = atlas.train(atlas.compose(settings), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000040")
    (tmp_path / "cut" / "summary.json").unlink()
    again = atlas.train(atlas.compose([*settings, "resume=auto"]), tmp_path / "cut")
    assert again.loss == whole.loss


@pytest.mark.parametrize(("window", "prefix_size"), [(32, 0), (64, 64), (512, 64)], ids=["no prefix", "small", "60m"])
def test_window_attention_and_its_gradients_by_a_fused_kernel(window: int, prefix_size: int) -> None:
    """Scores are not kept; the tokens are no multiple of the window. The shapes of keys are those of the models."""
    prepare_device(DeviceConfig(kind=DeviceKind.cuda))  # which chooses the kernel
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tokens = 3 * window + 4
    query, keys, values = draw(2, 3, tokens, 64), *(draw(2, 3, window - 1 + tokens, 64) for _ in range(2))
    valid = torch.ones(2, window - 1 + tokens, dtype=torch.bool)
    valid[1, : window - 1] = False
    pairs = [draw(3, prefix_size, 64), draw(3, prefix_size, 64)] if prefix_size else []
    weight = draw(2, 3, tokens, 64)

    def run(attend: Callable[..., torch.Tensor], parts: list[torch.Tensor]) -> list[torch.Tensor]:
        leaves = [part.detach().requires_grad_() for part in parts]
        device = leaves[0].device
        out = attend(*leaves[:3], valid.to(device), window, Prefix(*leaves[3:]) if prefix_size else None)
        return [out, *torch.autograd.grad((out * weight.to(device, out.dtype)).sum(), leaves)]

    given = [query, keys, values, *pairs]
    wanted = run(block_products, [part.double() for part in given])
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]):
        found = run(one_kernel, [part.cuda().bfloat16() for part in given])
    for ours, exact in zip(found, wanted, strict=True):
        assert (ours.cpu().double() - exact).norm() < 2e-2 * exact.norm()
