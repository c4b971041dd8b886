"""Whether the Triton kernels of the memory are used here, and why not. Imports neither triton nor the kernels.

They multiply in bf16 and add in float32, so they are for autocast on a GPU. With the interpreter of triton
(`TRITON_INTERPRET=1`) they run on a CPU where `device.kernels=triton` asks for them: for tests.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor

from atlas.config import ConfigError, Kernels

CAPABILITY = 8, 0  # of the first GPUs with bf16 products


@dataclass
class _Selection:
    choice: Kernels = Kernels.auto
    failed: str = ""  # the first line of the compiler's error
    untold: str = ""  # the same until a run has recorded it


_selection = _Selection()


def use(choice: Kernels) -> None:
    """Raises `ConfigError` for `triton` where the kernels cannot run."""
    if choice is Kernels.triton and (reason := missing()):
        allowed = "auto or torch" if torch.cuda.is_available() else "auto, compiled or torch"
        raise ConfigError(f"device.kernels=triton: must be {allowed} {reason}")
    _selection.choice = choice


def wanted() -> bool:
    return _selection.choice in (Kernels.auto, Kernels.triton)


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing() -> str:
    """Where and why the kernels cannot run, as the end of a refusal; "" if they can."""
    if not interpreted() and not torch.cuda.is_available():
        return "here: no GPU was found"
    if find_spec("triton") is None:
        return "here: triton is not installed (it comes with the CUDA builds of torch)"
    if not interpreted() and (capability := torch.cuda.get_device_capability()) < CAPABILITY:
        found, needed = (".".join(map(str, numbers)) for numbers in (capability, CAPABILITY))
        return f"on this GPU: its compute capability {found} is below {needed}"
    return _selection.failed


def takes(tensor: Tensor) -> bool:
    """Whether the kernels are used and can read the tensor where it lies."""
    interpreter = interpreted() and _selection.choice is Kernels.triton
    return wanted() and (tensor.is_cuda or (interpreter and tensor.is_cpu)) and not missing()


def give_up(error: Exception) -> str:
    """The kernels are not tried again in this process; returns why, in one line."""
    first = next(iter(str(error).strip().splitlines()), "")
    reason = f"a kernel could not be compiled: {type(error).__name__}: {first}"
    _selection.failed, _selection.untold = f"here: {reason}", reason
    return reason


def news() -> str:
    """Why the kernels have been given up since the last call, for the record of a run; else ""."""
    found, _selection.untold = _selection.untold, ""
    return found


def description() -> str:
    """Of the kernels on a GPU."""
    if _selection.choice is Kernels.torch:
        return "PyTorch operations"
    if reason := missing():
        return f"PyTorch operations ({reason.partition(': ')[2].partition(' (')[0]})"
    return f"Triton kernels {version('triton')}"
