import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from atlas.runs.allocator import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of 4 KiB on every machine
SIZE, COUNT = 2**24, 8

def step():
    blocks = [libc.malloc(ctypes.c_size_t(SIZE)) for _ in range(COUNT)]
    for block in blocks:
        libc.memset(ctypes.c_void_p(block), 1, ctypes.c_size_t(SIZE))
    for block in blocks:
        libc.free(ctypes.c_void_p(block))

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    keep_freed_memory()
step()
print(min(page_faults() for _ in range(3)))
"""


def page_faults_of_a_later_step(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_memory_that_a_step_has_freed_is_there_for_the_next() -> None:
    assert page_faults_of_a_later_step("keep") < 1000
    assert page_faults_of_a_later_step("default") > 10_000  # 128 MiB in pages of 4 KiB: else nothing needs keeping
