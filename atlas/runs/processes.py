"""`device.processes=N`: the ranks of one machine, started by the run itself.

torch.multiprocessing starts them, and they find each other by the variables that torchrun would set. Each leaves in a
file how it ended; the process that has started them raises what one process alone would.
"""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import start_processes

from atlas.config import RunConfig
from atlas.config.cores import share_of_cores
from atlas.parallel.launch import launched
from atlas.parallel.ranks import RankError, log_name, portable
from atlas.runs.signals import SIGNALS, STARTER_GONE, handled_by, interrupt, listening
from atlas.runs.summary import RunSummary, read_summary
from atlas.telemetry.sinks import SweepJob
from atlas.training.stop import StopRequest

HOST = "127.0.0.1"
ENDING_SECONDS = 30.0  # for the ranks that are left after one of them has ended, besides the time of a step
HALTED_SECONDS = 3.0  # for ranks that cannot end by themselves, unless somebody lets them go on


@dataclass(frozen=True)
class Start:
    """What a rank is started with. `port`: of the store where they meet; `ends`: the folder of the files of `End`."""

    config: RunConfig
    folder: Path
    job: SweepJob | None
    port: int
    ends: Path


@dataclass(frozen=True)
class End:
    """How a rank ended. `tells`: whether its error is the one that the user is to see. `terminated`: its error is that
    it was terminated, since it did not end by itself."""

    error: BaseException | None
    tells: bool
    terminated: bool = False


def run_in_processes(config: RunConfig, folder: Path, job: SweepJob | None) -> RunSummary:
    """The run in `folder`, trained by `config.device.processes` ranks. Raises what `run` raises.

    A signal to this process is passed on to the ranks, which agree on the step after which they stop.
    """
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as ends:
        endings = _run(Start(config, folder, job, store.port, Path(ends)))
    if endings[0].error is not None:  # else the run is complete, and rank 0 has told of ranks that were lost at its end
        for end in sorted(endings, key=lambda end: (end.terminated, not end.tells)):
            if end.error is not None:
                raise end.error
    summary = read_summary(folder)
    assert summary is not None, "every rank has ended well"
    return summary


class _PassedOn(StopRequest):
    """The request to end this run, which the ranks carry out; made before they are there, it waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self._processes: list[BaseProcess] = []
        self._asked: list[signal.Signals] = []

    def make(self, by: str) -> None:
        super().make(by)
        self.send(signal.SIGINT if by == "Ctrl-C" else signal.Signals[by])

    def send(self, number: signal.Signals) -> None:
        if not self._processes:
            self._asked.append(number)
        for process in self._processes:
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def to(self, processes: list[BaseProcess]) -> None:
        self._processes = processes
        for number in self._asked:
            self.send(number)


def _run(start: Start) -> list[End]:
    """Start the ranks and wait for all of them."""
    config, request = start.config, _PassedOn()
    resource_tracker.ensure_running()  # else it unblocks signals when the first rank is started
    with listening(request):
        with _blocked_signals():  # a rank inherits that, until it handles them
            ranks = start_processes(_rank, (start,), nprocs=config.device.processes, join=False, start_method="spawn")
            request.to(ranks.processes)
        try:
            terminated = _wait(ranks.processes, start)
        except KeyboardInterrupt:  # a second signal
            request.send(signal.SIGINT)
            for process in ranks.processes:
                process.join(ENDING_SECONDS)
                process.kill()
            raise
    return [_ending(start.ends, rank, one, one in terminated) for rank, one in enumerate(ranks.processes)]


def _wait(processes: Sequence[BaseProcess], start: Start) -> list[BaseProcess]:
    """Until all of them have ended; returns those that had to be terminated.

    A rank that is left when another one has ended notices that within the time of a step, and ends as well. One that is
    halted cannot, nor can one that still waits for all others to come.
    """
    left = {process.sentinel: process for process in processes}

    def collect(timeout: float | None) -> None:
        for sentinel in connection.wait(list(left), timeout):
            left.pop(cast(int, sentinel)).join()

    collect(None)
    deadline, patience = time.monotonic() + start.config.parallel.step_timeout_s + ENDING_SECONDS, ENDING_SECONDS
    while left and time.monotonic() < deadline:
        met = [process for rank, process in enumerate(processes) if _met(start.ends, rank).exists()]
        if all(process not in met or _is_halted(process) for process in left.values()):
            patience = HALTED_SECONDS
            break
        collect(1.0)
    for process in left.values():
        process.terminate()
    for process in left.values():
        process.join(patience)
        process.kill()
        process.join()
    return list(left.values())


def _is_halted(process: BaseProcess) -> bool:
    """Whether a signal (SIGSTOP) has stopped it."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "T"
    except OSError:  # it has ended, or there is no /proc
        return False


def _met(ends: Path, rank: int) -> Path:
    """There once the rank has found the others."""
    return ends / f"{rank}.met"


@contextmanager
def _blocked_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _rank(rank: int, start: Start) -> None:
    """One rank of the run, in a process of its own."""
    os.setpgid(0, 0)  # the terminal's Ctrl-C reaches it once, by the process that has started it
    atexit.register(gc.freeze)  # the search for cycles in all of torch took seconds at the end
    signal.signal(STARTER_GONE, interrupt)
    _prctl_pr_set_pdeathsig(STARTER_GONE)  # torch has asked for SIGINT, which would be told as Ctrl-C
    starter = parent_process()
    if starter is None or not starter.is_alive():  # it ended before that
        return
    world = start.config.device.processes
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": HOST, "MASTER_PORT": str(start.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(share_of_cores(world))
    from atlas.runs.run import run

    end = End(None, False)
    try:
        with handled_by(interrupt):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            with launched(start.config.parallel.start_timeout_s) as ranks:
                _met(start.ends, rank).touch()
                try:
                    with ranks.starting():
                        run(start.config, start.folder, start.job, ranks)
                except BaseException as error:
                    end = End(portable(error), ranks.tells(error))
                    raise
    except BaseException as error:
        end = end if end.error else End(portable(error), False)
    (start.ends / str(rank)).write_bytes(pickle.dumps(end))


def _ending(ends: Path, rank: int, process: BaseProcess, terminated: bool) -> End:
    try:
        end: End = pickle.loads((ends / str(rank)).read_bytes())
    except OSError:
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "ended without a word"
        how = "did not end by itself and was killed" if terminated else how
        return End(RankError(f"rank {rank} {how} (its log: {log_name(rank)})"), False, terminated)
    return End(end.error, end.tells, terminated and isinstance(end.error, KeyboardInterrupt))
