import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pytest

from atlas.config.lock import RunLock
from atlas.sweeps.stop import INTERRUPTED, StopSign
from atlas.sweeps.workers import passing_interrupts_on, use_own_device, worker_processes

WORKER = """
import sys, time
from pathlib import Path
from atlas.sweeps.workers import Worker
sweep = Path(sys.argv[1])
for _ in range(2):  # the same place for every job
    with Worker.at_work(sweep) as place:
        print(place, flush=True)
        if sys.stdin.readline() == "":
            break
"""


def worker(sweep: Path) -> "subprocess.Popen[str]":
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", WORKER, str(sweep)], text=True, **pipes)


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_each_living_worker_has_a_place_of_its_own(tmp_path: Path) -> None:
    with worker(tmp_path) as first:
        assert first_line(first) == "0"
        with worker(tmp_path) as second:
            assert first_line(second) == "1"
            assert worker_processes(tmp_path) == [first.pid, second.pid]
            second.communicate("next\n")
        assert worker_processes(tmp_path) == [first.pid]
        with worker(tmp_path) as third:
            assert first_line(third) == "1"
            third.communicate()
        assert first.communicate("next\n")[0] == "0\n"
    assert worker_processes(tmp_path) == []


def test_a_worker_of_another_host_is_left_alone(tmp_path: Path) -> None:
    with worker(tmp_path) as only:
        first_line(only)
        place = tmp_path / ".workers" / "0"
        place.write_text(f"process {only.pid} on not-{socket.gethostname()}", encoding="utf-8")
        assert worker_processes(tmp_path) == []
        only.communicate()


@pytest.mark.parametrize(
    ("visible", "place", "own"), [("0,1,2", 0, "0"), ("0,1,2", 4, "1"), ("GPU-a,GPU-b", 1, "GPU-b"), ("3", 2, "3")]
)
def test_devices_are_dealt_out_in_turn(visible: str, place: int, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    use_own_device(place)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_puts_up_the_stop_sign_and_the_second_raises(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    StopSign(tmp_path).put_up("job 1 failed (sweep.fail_fast)")  # the user's wish goes first
    with passing_interrupts_on(tmp_path, as_sigint=False):
        signal.raise_signal(number)
        assert StopSign(tmp_path).reason == INTERRUPTED
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err.startswith("atlas: interrupted: running jobs are asked to end")


@pytest.mark.parametrize(("as_sigint", "passed"), [(False, signal.SIGTERM), (True, signal.SIGINT)])
def test_workers_get_the_signal_that_came(as_sigint: bool, passed: signal.Signals, tmp_path: Path) -> None:
    got: list[int] = []
    (tmp_path / ".workers").mkdir()
    before = signal.signal(signal.SIGINT, lambda number, _: got.append(number))
    lock = RunLock(tmp_path / ".workers", "0")  # this process is the worker
    try:
        with passing_interrupts_on(tmp_path, as_sigint):
            claimed = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
            assert callable(claimed)
            claimed(signal.SIGTERM, None)
    finally:
        lock.release()
        signal.signal(signal.SIGINT, before)
    assert got == [passed]


@pytest.mark.parametrize("full", [False, True])
def test_an_interrupt_needs_no_room_on_the_disk(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link takes none. Where none can be made, workers are signalled and the second signal leaves all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sent: list[int] = []
    monkeypatch.setattr("atlas.sweeps.workers.worker_processes", lambda _: [12])
    monkeypatch.setattr("atlas.sweeps.workers.os.kill", lambda *process: sent.extend(process))
    if full:
        monkeypatch.setattr("os.symlink", refuse)
    with passing_interrupts_on(tmp_path, as_sigint=False):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert sent == [12, signal.SIGTERM]
    assert StopSign(tmp_path).reason == (None if full else INTERRUPTED)
    assert (tmp_path / ".stop").is_symlink() is not full
    told = f"atlas: warning: {tmp_path}/.stop cannot be written (No space left on device): further jobs may be started"
    assert (told in capsys.readouterr().err.splitlines()) is full


def test_the_first_reason_on_the_stop_sign_stays(tmp_path: Path) -> None:
    stop = StopSign(tmp_path)
    assert stop.reason is None
    stop.put_up("first")
    stop.put_up("second")
    assert stop.reason == "first"
    stop.take_down()
    stop.take_down()
    assert stop.reason is None


def test_another_process_finds_a_whole_reason_on_the_stop_sign(tmp_path: Path) -> None:
    stop, found, ended = StopSign(tmp_path), set[str | None](), Event()

    def look() -> None:
        while not ended.is_set():
            found.add(stop.reason)

    other = Thread(target=look)
    stop.put_up("first")
    other.start()
    for number in range(500):
        stop.put_up_instead(("second", "first")[number % 2])
    ended.set()
    other.join()
    assert found <= {"first", "second"}  # it is never empty, nor down
    assert [path.name for path in tmp_path.iterdir()] == [".stop"]
