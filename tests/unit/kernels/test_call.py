"""The call layer: what it takes, what it lays out anew, what it refuses, and that no address is taken elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import atlas
from atlas.kernels.call import takes
from atlas.ops.mixed_queries import cpp as mixed
from atlas.ops.rms_norm import cpp as norm
from atlas.ops.rms_norm.cpp import FORWARD, NormSizes
from atlas.ops.swiglu import cpp as gated

SIZES = NormSizes(rows=3, width=16, block=64, epsilon=1e-6)


def test_an_address_of_a_tensor_is_taken_in_one_file_only() -> None:
    folder = Path(atlas.__file__).parent
    files = [*(folder / "kernels").rglob("*.py"), *(folder / "ops").rglob("*.py")]
    found = [path.name for path in files if "data_ptr" in path.read_text(encoding="utf-8")]
    assert found == ["call.py"]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.ones(3, 16), torch.ones(8), "weight is torch.float32 [8] on cpu, must be torch.float32 [16] on cpu"),
        (torch.ones(2, 16), torch.ones(16), "x is torch.float32 [2, 16] on cpu, must be torch.float32 [3, 16] on cpu"),
        (
            torch.ones(3, 16, dtype=torch.float64),
            torch.ones(16),
            "x is torch.float64 [3, 16] on cpu, must be torch.float32 [3, 16] on cpu",
        ),
        (
            torch.ones(3, 16, device="meta"),
            torch.ones(16),
            "x is torch.float32 [3, 16] on meta, must be torch.float32 [3, 16] on cpu",
        ),
        (None, torch.ones(16), "x is missing"),
    ],
)
def test_a_tensor_that_does_not_fit_the_sizes_is_refused(x: Tensor | None, weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'atlas_norm_forward: {message}')}$"):
        FORWARD(SIZES, x, weight)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("width", "rows"), [(12, 3), (16, -1)])
def test_sizes_that_a_kernel_cannot_run_are_refused(width: int, rows: int) -> None:
    with pytest.raises(ValueError, match=r"widths must be multiples of 8$"):
        FORWARD(SIZES._replace(width=width, rows=rows), torch.ones(3, width), torch.ones(width))


@pytest.mark.usefixtures("kernel")
def test_an_operator_refuses_what_it_cannot_take_and_does_not_read_past_it() -> None:
    with pytest.raises(ValueError, match=r"^atlas_norm_forward: weight is .* \[8\]"):
        norm.forward(torch.ones(2, 16), torch.ones(8))
    with pytest.raises(ValueError, match=r"^atlas_swiglu_forward: x is .* \[2, 17\] on cpu, must be .* \[2, 16\]"):
        gated.forward(torch.ones(2, 17))
    with pytest.raises(ValueError, match=r"widths must be multiples of 8$"):
        gated.forward(torch.ones(2, 20))
    for heads in (0, 2):
        with pytest.raises(ValueError, match=f"3 rows, must be a multiple of the {heads} values of mix"):
            mixed.forward(torch.ones(3, 4, 8), torch.ones(3, 4, 8), torch.ones(heads))


def test_only_plain_float32_on_a_cpu_is_taken(kernel: Any) -> None:
    x = torch.ones(2, 8)
    assert takes(x, widths=[8])
    assert takes(torch.nn.Parameter(x), x.expand(3, 2, 8), widths=[8, 16])
    others = [x.double(), x.bfloat16(), x.to("meta"), x.to_sparse(), x.to_mkldnn(), x.int()]
    assert not any(takes(x, other, widths=[8]) for other in others)
    assert not any(takes(x, widths=[8, width]) for width in (0, 7, 12, -8))


LITTLE_MEMORY = """
import resource, torch
from atlas.ops.banded_attention import Prefix, banded_attention
torch.set_num_threads(1)
tensors = [torch.zeros(1, 1, 1, 8) for _ in range(3)]
pairs = Prefix(*torch.zeros(2, 1, 2_000_000, 8))
valid = torch.ones(1, 1, dtype=torch.bool)
banded_attention(*tensors, valid, 1, None)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
try:
    banded_attention(*tensors, valid, 1, pairs)
except MemoryError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
def test_no_memory_for_a_kernel_is_a_memory_error() -> None:
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "atlas_attention_forward: no memory for its working space\n"), (
        done.stderr
    )
