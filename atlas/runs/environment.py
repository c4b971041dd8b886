"""The environment of a run: versions, revision, device, memory."""

from __future__ import annotations

import gc
import platform
import re
import resource
import subprocess
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from atlas import __version__
from atlas.config import RunConfig
from atlas.config.continuing import settings_hash
from atlas.kernels import gpu
from atlas.kernels.library import description
from atlas.runs.allocator import return_freed_memory

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "wandb")


@cache
def versions() -> dict[str, str]:
    found = {"atlas": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def config_hash(config: RunConfig) -> str:
    """The same for runs that must give the same numbers."""
    return settings_hash(asdict(config))


@cache
def git_revision() -> str:
    """Revision of the checkout that the package runs from, `+changes` if it differs; "" outside of one."""
    here = Path(__file__).parent
    try:
        revision = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return revision.stdout.strip()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kernels_in_words(device)}"
    return f"cpu ({_processor()}, {torch.get_num_threads()} threads, {kernels_in_words(device)})"


def kernels_in_words(device: torch.device) -> str:
    """Which kernels are in use there; on a CPU those of Triton where its interpreter runs them."""
    return gpu.description() if device.type == "cuda" or gpu.usable(on_gpu=False, on_cpu=True) else description()


def _processor() -> str:
    """Model of the processor, or its architecture where the system does not name a model."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


class PeakMemory:
    """Highest memory in use since this object was made: of the device's allocator on CUDA, else of the process.

    The system remembers the highest of the whole process, in which a sweep runs many jobs. Linux lets a process start
    the record anew; where it cannot, a peak is only known if it is higher than every earlier one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()  # what an earlier run left behind does not count
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        return_freed_memory()
        self._restarted = _restart_record()
        self._before = _highest_bytes()

    def read(self) -> int | None:
        """In bytes; None where it may be the peak of an earlier run."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        highest = _highest_bytes()
        return highest if self._restarted or highest > self._before else None


def _restart_record() -> bool:
    """Start the kernel's record of the process's highest memory anew; False where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _highest_bytes() -> int:
    """The system's record of the process's highest resident memory."""
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # bytes there, KiB elsewhere
