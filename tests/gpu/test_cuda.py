"""What must hold on a GPU as well. Skipped without one."""

from pathlib import Path

import pytest
import torch

import atlas

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_model_gives_what_it_gives_on_the_cpu() -> None:
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
