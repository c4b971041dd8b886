"""What a run ran on: versions, revision, device, memory. Evidence for whoever reads its numbers."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from atlas import __version__
from atlas.config import CHANGEABLE, RunConfig

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "wandb")


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
    settings = asdict(config)
    for key in CHANGEABLE:
        group, _, name = key.partition(".")
        del (settings[group] if name else settings)[name or group]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


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
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory in use so far: of the device's allocator on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # bytes there, KiB elsewhere
