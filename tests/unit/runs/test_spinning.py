"""Waiting OpenMP threads sleep at once while other processes want the cores."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atlas.runs.spinning import (
    BUSY,
    PROC_STAT,
    QUIET,
    QUIET_PERIODS,
    SET_BY_USER,
    SpinControl,
    _openmp_library,
    control_spinning,
    used_by_others,
)
from atlas.runs.time_slice import SLICE

CORES = torch.get_num_threads() if "OMP_NUM_THREADS" not in os.environ else len(os.sched_getaffinity(0))
SETTLED = 10  # equal counts in a row, 20 ms apart


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> Iterator[SpinControl]:
    """Only the test calls `observe`."""
    library = _openmp_library()
    if library is None:
        pytest.skip("torch runs without GNU's OpenMP library")
    monkeypatch.setattr(SpinControl, "_look", lambda _: None)
    made = SpinControl(library, threads=2)
    yield made
    for _ in range(QUIET_PERIODS):
        made.observe(0.0)


def settled_threads() -> int:
    """Their number when it has not changed for a while: those of earlier tests may still be ending."""
    counts: list[int] = []
    while len(counts) < SETTLED or len({*counts[-SETTLED:]}) > 1:
        counts.append(threads_of_this_process())
        time.sleep(0.02)
    return counts[-1]


def test_the_threads_outnumber_the_cores_exactly_while_the_machine_is_busy(control: SpinControl) -> None:
    busy = settled_threads()
    assert control.busy
    for _ in range(QUIET_PERIODS - 1):
        control.observe(0.0)
    control.observe((QUIET + BUSY) / 2)  # neither: the count of quiet periods starts anew
    for _ in range(QUIET_PERIODS - 1):
        control.observe(0.0)
    assert control.busy
    control.observe(QUIET)
    assert not control.busy
    deadline = time.monotonic() + 10
    while threads_of_this_process() >= busy - CORES and time.monotonic() < deadline:
        time.sleep(0.01)
    quiet = settled_threads()
    assert quiet < busy - CORES
    control.observe((QUIET + BUSY) / 2)
    assert not control.busy
    control.observe(BUSY)
    assert control.busy
    assert threads_of_this_process() > quiet + CORES


def test_the_time_of_other_processes_is_told_from_ones_own() -> None:
    cores = os.sched_getaffinity(0)
    before, own = used_by_others(cores), time.process_time()
    subprocess.run([sys.executable, "-c", "while __import__('time').process_time() < 0.3: pass"], check=True)
    between = used_by_others(cores)
    assert between - before >= 0.25
    while time.process_time() - own < 0.3:
        pass
    assert used_by_others(cores) >= between - 0.05  # ticks of 0.01 s


@pytest.mark.parametrize("name", SET_BY_USER)
def test_a_policy_of_the_user_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("atlas.runs.spinning._control", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv(name, "7")
    assert control_spinning() is None


def test_one_thread_has_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.runs.spinning._control", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for name in SET_BY_USER:
        monkeypatch.delenv(name, raising=False)
    assert control_spinning() is None


SLICED = """
import threading
from atlas.runs.time_slice import ask_for_short_slices, scheduling
before, slices = scheduling(0), []
started = threading.Event()
waiting = threading.Thread(target=started.wait)
waiting.start()
ask_for_short_slices()
started.set()
later = threading.Thread(target=lambda: slices.append(scheduling(0)))
later.start()
later.join()
print(before[:2] == scheduling(0)[:2], before[2], scheduling(0)[2], slices[0][2])
"""


@pytest.mark.skipif(not PROC_STAT.is_file(), reason="needs Linux")
def test_every_thread_gets_a_short_slice_and_keeps_its_nice_value() -> None:
    done = subprocess.run(["nice", "-n", "7", sys.executable, "-c", SLICED], capture_output=True, text=True, check=True)
    same, before, own, of_a_new_thread = done.stdout.split()
    assert same == "True"
    if before != "0":  # kernels from 6.12 on have slices for the usual policy
        assert (own, of_a_new_thread) == (str(SLICE), str(SLICE))


WATCHED = """
import time
import atlas, torch
from atlas.runs.build import prepare_device
from atlas.runs.spinning import control_spinning
prepare_device(atlas.compose(["device=cpu", "device.threads=2"]).device)
control = control_spinning()
for _ in range(20):  # as on a quiet machine
    control.observe(0.0)
was_busy, deadline = control.busy, time.monotonic() + 30
print("ready", flush=True)
while not control.busy and time.monotonic() < deadline:
    torch.ones(512, 512) @ torch.ones(512, 512)
print(was_busy, control.busy)
"""


@pytest.mark.slow
@pytest.mark.skipif(not PROC_STAT.is_file(), reason="needs Linux")
def test_busy_processes_beside_a_run_are_noticed() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in SET_BY_USER}
    command = [sys.executable, "-c", WATCHED]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watched:
        assert watched.stdout is not None
        assert watched.stdout.readline() == "ready\n"
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * CORES)]
        try:
            assert watched.stdout.read() == "False True\n"
        finally:
            for other in busy:
                other.kill()
                other.wait()
