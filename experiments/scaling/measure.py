"""What ranks on this machine really keep and send: gloo, one thread each, counted by Linux for every TCP connection."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.multiprocessing.spawn import start_processes

from atlas.config import ParallelKind, RunConfig
from atlas.parallel.launch import launched
from atlas.runs.build import build_data, build_model, build_optimizer
from atlas.runs.slicing import slice_state
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.watch.gate_monitor import GateMonitor
from atlas.training.watch.history import History

HOST = "127.0.0.1"
STEPS = 3
BYTES_SENT = 200  # offset of `tcpi_bytes_sent` in Linux's `struct tcp_info`


class Found(NamedTuple):
    kept: int  # bytes of weights, gradients and moments after a step
    sent: float  # bytes a step


def measure(config: RunConfig, world: int) -> list[Found]:
    """Of every rank of a run of `config` by `world` processes."""
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = config, world, store.port, folder
        start_processes(_rank, arguments, nprocs=world)
        return [Found(*pickle.loads((Path(folder) / str(rank)).read_bytes())) for rank in range(world)]


def _rank(rank: int, config: RunConfig, world: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": HOST}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    with launched() as ranks:
        model, cpu = build_model(config), torch.device("cpu")
        monitor, history = GateMonitor(config.train.gate), History(config.rollback)
        state = TrainState(model, build_optimizer(config, model), monitor, history, ranks=ranks)
        step, data = TrainStep(config.train, cpu, torch.float32, ranks), build_data(config)
        if config.parallel.kind is ParallelKind.fsdp and world > 1:
            slice_state(config, state, cpu)
        step(state, data.batch(1) if step.rows is None else data.batch(1, step.rows))
        before = _sent()
        for number in range(2, 2 + STEPS):
            step(state, data.batch(number) if step.rows is None else data.batch(number, step.rows))
        sent = (_sent() - before) / STEPS
        tensors = [tensor for one in model.parameters() for tensor in (one, one.grad) if tensor is not None]
        for optimizer in state.optimizer.optimizers:
            moments = [value for kept in optimizer.state.values() for value in kept.values()]
            tensors += [value for value in moments if isinstance(value, Tensor)]
        kept = sum(ranks.own(tensor.detach()).nbytes for tensor in tensors)
        ranks.gather(kept)  # no rank leaves while another one still sends
    (Path(folder) / str(rank)).write_bytes(pickle.dumps((kept, sent)))


def _sent() -> int:
    """Bytes that the open TCP connections of this process have sent."""
    total = 0
    for path in [*Path("/proc/self/fd").iterdir()]:
        with suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_SENT + 8)
                total += struct.unpack_from("Q", info, BYTES_SENT)[0]
    return total
