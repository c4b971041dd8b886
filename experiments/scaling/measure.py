"""What ranks on this machine really keep and send: gloo, one thread each, counted by Linux for every TCP connection."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import start_processes

from atlas.config import RunConfig
from atlas.parallel.launch import launched
from atlas.parallel.ranks import Ranks
from atlas.runs.build import build_data, build_model, build_optimizer
from atlas.runs.slicing import in_slices, slice_state
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep

HOST = "127.0.0.1"
STEPS = 3
BYTES_SENT = 200  # offset of `tcpi_bytes_sent` in Linux's `struct tcp_info`
T = TypeVar("T")


class Found(NamedTuple):
    kept: int  # bytes of weights, gradients and moments after a step
    sent: float  # bytes a step


def on_ranks(world: int, work: Callable[..., T], *arguments: Any) -> list[T]:
    """What `work(ranks, *arguments)` returns on each of `world` ranks, which are processes of this machine."""
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_rank, (work, arguments, world, store.port, folder), nprocs=world)
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world)]


def _rank(rank: int, work: Callable[..., Any], arguments: tuple[Any, ...], world: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": HOST}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    with launched() as ranks:
        found = work(ranks, *arguments)
        ranks.gather(None)  # no rank leaves while another one still sends
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(found))


def ready(config: RunConfig, ranks: Ranks) -> tuple[TrainState, TrainStep]:
    """A run on the CPU before step 1."""
    model, cpu = build_model(config), torch.device("cpu")
    monitor, history = GateMonitor(config.train.gate), History(config.rollback)
    state = TrainState(model, build_optimizer(config, model), monitor, history, ranks=ranks)
    if in_slices(config, ranks):
        slice_state(config, state, cpu)
    return state, TrainStep(config.train, cpu, torch.float32, ranks, context=config.parallel.context)


def kept_and_sent(ranks: Ranks, config: RunConfig) -> Found:
    """Of this rank, in a run of `config`."""
    (state, step), data = ready(config, ranks), build_data(config)
    before = 0
    for number in range(1, 2 + STEPS):
        step(state, data.batch(number, step.rows))
        before = before or _sent()  # what the first step sends once does not count
    sent = (_sent() - before) / STEPS
    tensors = [tensor for one in state.model.parameters() for tensor in (one, one.grad) if tensor is not None]
    for optimizer in state.optimizer.optimizers:
        moments = [value for kept in optimizer.state.values() for value in kept.values()]
        tensors += [value for value in moments if isinstance(value, Tensor)]
    return Found(sum(ranks.own(tensor.detach()).nbytes for tensor in tensors), sent)


def _sent() -> int:
    """Bytes that the open TCP connections of this process have sent."""
    total = 0
    for path in [*Path("/proc/self/fd").iterdir()]:
        with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_SENT + 8)
                total += struct.unpack_from("Q", info, BYTES_SENT)[0]
    return total
