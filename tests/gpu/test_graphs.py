"""Steps and tokens recorded as CUDA graphs, beside those without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import atlas
from atlas.kernels import gpu
from atlas.models.decoding import Sampling, decode
from atlas.telemetry.run_files import RunFiles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SETTINGS = ["device=cuda", "niah=off", "logger=none", "rollback=off", "telemetry.every=7", "train.steps=20"]


@pytest.mark.parametrize("overrides", [[], ["train.accumulate=2"], ["device.kernels=torch"], ["device.compile=true"]])
def test_steps_train_as_they_do_without_a_graph(overrides: list[str], tmp_path: Path) -> None:
    """Steps 7 and 14 are logged, so they run without the graph that the others replay."""
    losses = {}
    for graph in ("always", "never"):
        run = atlas.train(atlas.compose([*SETTINGS, *overrides, f"device.graph={graph}"]), tmp_path / graph)
        assert not gpu.graphless(), run.device
        losses[graph] = run.loss
    assert losses["always"] == pytest.approx(losses["never"], rel=1e-2)
    assert not RunFiles(tmp_path / "always").of_kind("warning")


def test_a_carried_memory_runs_without_a_graph(tmp_path: Path) -> None:
    run = atlas.train(atlas.compose([*SETTINGS, "train.carry_memory=true"]), tmp_path / "run")
    assert run.status == "completed"


@torch.no_grad()
def test_tokens_are_those_without_a_graph() -> None:
    model = atlas.build_model(atlas.compose(["model=small"])).cuda().eval()
    prompt = torch.randint(0, 256, (2, 300), generator=torch.Generator().manual_seed(0)).cuda()
    found = [decode(model, prompt, Sampling(temperature=0), capture=one) for one in (gpu.cuda_capture, None)]
    for _ in range(80):
        ours, theirs = (next(tokens) for tokens in found)
        assert torch.equal(ours, theirs)
    assert not gpu.graphless()
