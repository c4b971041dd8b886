"""Fixtures of all tests: no setting of the user's environment reaches a test."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest

from atlas.config import Kernels
from atlas.kernels import gpu
from atlas.kernels.library import use


def pytest_configure() -> None:
    """A shell in the background ignores Ctrl-C, nohup ignores SIGHUP. Tests send both, to processes of theirs too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Modules and collected tests live to the end: the garbage collector need not look at them during each test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are written where the test says, and W&B stays offline."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name in ("ATLAS_RUN_DIR", "HYDRA_FULL_ERROR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(autouse=True)
def own_choice_of_kernels() -> Iterator[None]:
    """Which kernels are used holds for a process: a run that one test makes does not choose for the next."""
    yield
    use(Kernels.auto)
    gpu.use(Kernels.auto)


@pytest.fixture(autouse=True)
def skip_without_gpu(request: pytest.FixtureRequest) -> None:
    """Tests marked `gpu` are skipped where there is no CUDA device."""
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
