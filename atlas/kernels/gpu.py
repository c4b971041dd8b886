"""Whether the Triton kernels and CUDA graphs are used here, and why not. Imports neither triton nor the kernels.

The kernels multiply in bf16 and add in float32, so they are for autocast on a GPU. With the interpreter of triton
(`TRITON_INTERPRET=1`) they run on a CPU where `device.kernels=triton` asks for them: for tests.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from atlas.config import ConfigError, Kernels

Result = TypeVar("Result")


class Capture(Protocol):
    """Records work: returns what it returned, and a function that does it again on the same memory."""

    def __call__(self, work: Callable[[], Result]) -> tuple[Result, Callable[[], None]]: ...


CAPABILITY = 8, 0  # of the first GPUs with bf16 products


@dataclass
class _Selection:
    choice: Kernels = Kernels.auto
    failed: dict[str, str] = field(default_factory=dict)  # kernels that were given up, and why
    graphless: str = ""  # why the steps run without a CUDA graph
    untold: list[str] = field(default_factory=list)  # what was given up, until a run has recorded it


_selection = _Selection()


def use(choice: Kernels) -> None:
    """From now on; what an earlier run has given up is tried again. Raises `ConfigError` for `triton` where the kernels
    cannot run."""
    global _selection
    if choice is Kernels.triton and (reason := missing()):
        raise _refused(reason)
    _selection = _Selection(choice)


def _refused(reason: str) -> ConfigError:
    allowed = "auto or torch" if torch.cuda.is_available() else "auto, compiled or torch"
    return ConfigError(f"device.kernels=triton: must be {allowed} {reason}")


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
    return ""


def takes(tensor: Tensor) -> bool:
    """Whether the kernels are used and can read the tensor where it lies: within a row they count in 32 bits."""
    row = zip(tensor.shape[1:], tensor.stride()[1:], strict=True)
    last = sum((size - 1) * stride for size, stride in row)
    return usable(on_gpu=tensor.is_cuda, on_cpu=tensor.is_cpu) and last < 2**31


def usable(*, on_gpu: bool, on_cpu: bool) -> bool:
    """The same for a tensor that lies there."""
    interpreter = interpreted() and _selection.choice is Kernels.triton
    return wanted() and (on_gpu or (interpreter and on_cpu)) and not missing()


def why_not(*kernels: Callable[[], Any]) -> str:
    """Compile kernels before any work is given to them; each call returns a compiled one. "" if they fit the GPU, else
    why not, in a line."""
    try:
        for kernel in kernels:
            needed = kernel().metadata.shared
            device: Any = torch.cuda.get_device_properties()
            limit = device.shared_memory_per_block_optin
            if needed > limit:
                raise RuntimeError(f"{needed} bytes of shared memory are needed, the GPU has {limit}")
    except Exception as error:  # of the compiler, of many types
        return _first_line(error)
    return ""


def ready(name: str, reason: str) -> bool:
    """Whether the kernels `name` can be launched, for which `why_not` has given `reason`.

    Where not, PyTorch's operations do their work for the rest of the run, and a warning says so once. Raises
    `ConfigError` where `device.kernels=triton` insists on them.
    """
    if reason and _selection.choice is Kernels.triton:
        raise _refused(f"here: {_given_up(name, reason)}")
    if reason and name not in _selection.failed:
        _selection.failed[name] = reason
        told = f"{_given_up(name, reason)}; PyTorch's operations do its work"
        _selection.untold.append(told)
        warnings.warn(told, RuntimeWarning, stacklevel=2)
    return not reason


def rows(tensor: Tensor) -> Tensor:
    """The kernels take any strides but the last, which is 1."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def strides(*tensors: Tensor) -> list[int]:
    """Of row and token."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _given_up(name: str, reason: str) -> str:
    return f"the kernel of {name} could not be compiled: {reason}"


def graphless() -> bool:
    """Whether the CUDA graph of the steps has been given up."""
    return bool(_selection.graphless)


def give_up_graph(what: str, error: Exception) -> None:
    """No graph is recorded again in this run. `what`: a step or a token."""
    reason = _first_line(error)
    _selection.graphless = reason
    _selection.untold.append(f"the CUDA graph of {what} was given up: {reason}; the kernels are launched one by one")


def cuda_capture(work: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
    """Record `work` as a CUDA graph; returns what it returned, which every replay writes again, and the replay.

    The replay holds `work`, and with it the memory that the graph reads.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # gradients are added up on the stream of their first backward pass
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # the thread that makes batches asks for memory
        found = work()

    def replay(kept: Callable[[], Result] = work) -> None:
        graph.replay()

    return found, replay


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def news() -> list[str]:
    """What has been given up since the last call and why, for the record of a run."""
    found, _selection.untold = _selection.untold, []
    return found


def description() -> str:
    """Of the kernels, and of what was given up."""
    graph = [f"no CUDA graph ({_selection.graphless})"] if graphless() else []
    lost = [f"without {name} ({reason})" for name, reason in _selection.failed.items()]
    return ", ".join([_kernels(), *lost, *graph])


def _kernels() -> str:
    if _selection.choice is Kernels.torch:
        return "PyTorch operations"
    if reason := missing():
        return f"PyTorch operations ({reason.partition(': ')[2].partition(' (')[0]})"
    return f"Triton kernels {version('triton')}" + " by the interpreter" * interpreted()
