"""Named parts of a run's time, which the profiler of PyTorch shows: they cost microseconds while none is recording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function

PREFIX = "atlas: "


class Region:
    """`waits`: a region ends when the device has done its work. A profile switches it on: without it a GPU works on
    while the host is in another part."""

    waits = False


@contextmanager
def region(name: str) -> Iterator[None]:
    with record_function(PREFIX + name):
        yield
        if Region.waits:
            torch.cuda.synchronize()
