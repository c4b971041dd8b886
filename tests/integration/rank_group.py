"""Starts the processes of a run as torchrun does, for tests: forked after the imports, which take longer than the runs.

python -m tests.integration.rank_group WORLD JOBS OUT

JOBS: a JSON file with a list of jobs, which every rank does one after the other. A job is {"name", "do", "overrides",
"folder"}, with "rank" and "also" for further overrides of one rank. How it ended on a rank is in OUT/NAME.rank<r>. Jobs
with "restart": 1 are done by new processes, which torchrun's store tells apart from the ones before by that number.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

import atlas
from atlas.checkpoint.manager import CheckpointManager
from atlas.config import ConfigError, ParallelConfig, ParallelKind, RunConfig
from atlas.data.batch import Batch
from atlas.data.text import TextData
from atlas.parallel import tensor_writer
from atlas.parallel.launch import launched
from atlas.parallel.ranks import ALONE, Ranks
from atlas.parallel.slices import slice_of
from atlas.runs.build import build_data, build_model, build_optimizer
from atlas.runs.run import require_shared
from atlas.runs.slicing import slice_state
from atlas.train import main as main_of_train
from atlas.training.gate_monitor import GateMonitor
from atlas.training.rollback.history import History
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.trainer import Trainer

LIMIT_SECONDS = 150.0  # for all jobs of one start together; then ranks that hang are killed


class Troubled(TextData):
    """Text, and a trouble when a rank asks for the batch of a step: `trouble` is WHAT@STEP on rank `on`, once.

    WHAT: a signal's name (with `^` for the process that has started this one); sleep; full (nothing larger than 20 kB
    can be written), room (it can again).
    """

    def __init__(self, *, trouble: str, on: int, **rest: Any) -> None:
        super().__init__(**rest)
        struck = os.environ["RANK"] == str(on) and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        self.troubles = dict(text.split("@")[::-1] for text in trouble.split()) if struck else {}

    def batch(self, step: int, rows: range | None = None) -> Batch:
        match self.troubles.pop(str(step), None):
            case None:
                pass
            case "sleep":
                time.sleep(4)
            case "full" | "room" as what:
                limit = 20_000 if what == "full" else resource.RLIM_INFINITY
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            case name:
                process = os.getppid() if name.startswith("^") else os.getpid()
                os.kill(process, signal.Signals[name.removeprefix("^")])
        return super().batch(step, rows)


@contextmanager
def no_threads_left() -> Iterator[None]:
    """What trains in this context leaves no thread of gloo: one that lives at the end may abort the process."""
    try:
        yield
    finally:
        deadline = time.monotonic() + 5  # Linux may list a thread that was joined a little longer
        while left := [name for name in _thread_names() if "gloo" in name]:
            assert time.monotonic() < deadline, f"left: {left}"
            time.sleep(0.01)


def _thread_names() -> Iterator[str]:
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has ended
            yield path.read_text(encoding="utf-8")


def train(job: dict[str, Any], overrides: list[str]) -> str:
    with no_threads_left():
        return atlas.train(atlas.compose(overrides), job["folder"]).status


def stop_at_end(job: dict[str, Any], overrides: list[str]) -> str:
    """The process of rank 1 is halted between its last step and its end, for longer than a step may take."""
    run, halted = Trainer.run, os.environ["RANK"] == "1"

    def halting(trainer: Trainer) -> None:
        run(trainer)
        if os.fork() == 0:
            time.sleep(3)
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)

    Trainer.run = halting if halted else run  # type: ignore[method-assign]
    try:
        return train(job, overrides)
    finally:
        Trainer.run = run  # type: ignore[method-assign]


def die_while_saving(job: dict[str, Any], overrides: list[str]) -> str:
    """Rank 1 is killed when it is to write its part of the third checkpoint."""
    write, calls = tensor_writer.write, itertools.count(1)

    def dying(folder: Path, tensors: Any, group: Any) -> str:
        if os.environ["RANK"] == "1" and next(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(folder, tensors, group)

    tensor_writer.write = dying
    return train(job, overrides)


def train_other_memory(job: dict[str, Any], overrides: list[str]) -> str:
    """The persistent memory of one rank starts with other keys, by 1e-7."""
    orthogonal = torch.nn.init.orthogonal_
    if job["rank"] == int(os.environ["RANK"]):
        torch.nn.init.orthogonal_ = lambda tensor: orthogonal(tensor).add_(1e-7)
    try:
        return train(job, overrides)
    finally:
        torch.nn.init.orthogonal_ = orthogonal


def command(job: dict[str, Any], overrides: list[str]) -> str:
    """The command line, in a folder of its own."""
    Path(job["folder"]).mkdir(exist_ok=True)
    os.chdir(job["folder"])
    sys.argv = ["atlas.train", *overrides]
    try:
        with no_threads_left():
            return f"status {main_of_train()}"
    except SystemExit as error:
        return f"status {error.code}"


def state_of(config: RunConfig, ranks: Ranks) -> TrainState:
    """Before step 1; in slices where the configuration asks for them."""
    model = build_model(config)
    monitor, history = GateMonitor(config.train.gate), History(config.rollback)
    state = TrainState(model, build_optimizer(config, model), monitor, history, ranks=ranks)
    ranks.limit(config.parallel.step_timeout_s)  # DTensor keeps the name of a group that it has seen: that of a run
    if config.parallel.kind is ParallelKind.fsdp and ranks.world > 1:
        slice_state(config, state, torch.device("cpu"))
    return state


def gradients(job: dict[str, Any], overrides: list[str]) -> str:
    """Two training steps; the gradients of the second are written into the folder, with their loss and norm."""
    config = atlas.compose(overrides)
    with launched() as ranks:
        state = state_of(config, ranks)
        context, data = config.parallel.context, build_data(config)
        step = TrainStep(config.train, torch.device("cpu"), torch.float32, ranks, context=context)
        for number in (1, 2):
            result = step(state, data.batch(number, step.rows))
        state.require_same_weights("after step 2")
        own = {name: parameter.grad for name, parameter in state.model.named_parameters()}
        found = {name: None if gradient is None else ranks.whole(gradient) for name, gradient in own.items()}
        if ranks.first:
            torch.save({"loss": result.loss, "norm": result.gradient_norm, "gradients": found}, job["folder"])
    return "done"


def parts_of_sequences(job: dict[str, Any], overrides: list[str]) -> str:
    """A loss of random weights in float64, over what each rank reads of every sequence; written with its gradients."""
    config = atlas.compose(overrides)
    with launched() as ranks:
        ranks.limit(config.parallel.step_timeout_s)
        torch.manual_seed(0)
        model = build_model(config).double()
        for parameter in model.parameters():  # what starts at zero is to matter too
            parameter.data += 0.02 * torch.randn_like(parameter)
        sequence, relay = config.train.sequence, ranks.relay(config.parallel.context)
        tokens = torch.randint(256, (2, sequence))
        coefficients = torch.randn(2, sequence, config.model.width, dtype=torch.float64)
        part, parts = (relay.part, relay.parts) if relay else (0, 1)
        reading = model.read(tokens.chunk(parts, dim=1)[part], relay=relay)
        loss = (reading.hidden * coefficients.chunk(parts, dim=1)[part]).sum()
        for gates in reading.gates:
            loss = loss + gates.square().sum()
        loss.backward()
        own = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        hidden, losses, gradients = zip(*ranks.gather((reading.hidden.detach(), loss.detach(), own)), strict=True)
        if ranks.first:
            summed = {name: sum(one[name] for one in gradients) for name in own}
            found = {"hidden": torch.cat(hidden, dim=1), "loss": sum(losses), "gradients": summed}
            torch.save(found, job["folder"])
    return "done"


def update(job: dict[str, Any], overrides: list[str]) -> str:
    """Three updates by gradients that are drawn, in slices and whole; says whether all bits are the same."""
    config = atlas.compose(overrides)
    with launched() as ranks:
        sliced, whole = state_of(config, ranks), state_of(config, ALONE)
        generator = torch.Generator().manual_seed(0)
        for number in (1, 2, 3):
            for name, parameter in whole.model.named_parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                other = sliced.model.get_parameter(name)
                other.grad = slice_of(parameter.grad, other)
            for state in (sliced, whole):
                state.optimizer.step(number)
        leaves = [
            [leaf for part in ("model", "optimizer") for leaf in tree_leaves(payload[part])]
            for payload in (sliced.payload(), whole.payload())
        ]
        same = all(
            torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
            for one, other in zip(*leaves, strict=True)
        )
    return "same bits" if same else "other bits"


def reload(job: dict[str, Any], overrides: list[str]) -> str:
    """The newest checkpoint of the run `of`, loaded into slices, and written whole into the folder."""
    config = atlas.compose(overrides)
    with launched() as ranks:
        payload, _ = CheckpointManager(Path(job["of"]) / "checkpoints", keep=2).load()
        state = state_of(replace(config, parallel=ParallelConfig()), ranks)
        state.restore(payload)
        slice_state(config, state, torch.device("cpu"))
        found = state.payload()
        if ranks.first:
            torch.save(found, job["folder"])
    return "done"


def unshared(job: dict[str, Any], overrides: list[str]) -> str:
    """Each rank has a folder of its own."""
    with launched() as ranks:
        folder = Path(f"{job['folder']}-{ranks.rank}")
        folder.mkdir()
        require_shared(folder, ranks)
    return "shared"


def work(jobs: list[dict[str, Any]], out: Path) -> None:
    rank = int(os.environ["RANK"])
    for job in jobs:
        also = job["also"] if job["rank"] == rank else []
        try:
            ended = globals()[job["do"]](job, [*job["overrides"], *also])
        except ConfigError as error:
            ended = f"refused: {error}"
        except KeyboardInterrupt as error:
            ended = f"interrupted: {error}"
        except Exception as error:
            ended = f"{type(error).__name__}: {error}"
        (out / f"{job['name']}.rank{rank}").write_text(ended, encoding="utf-8")


def main() -> int:
    """The number of ranks that hung."""
    world, jobs, out = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    hung = 0
    for restart in sorted({job["restart"] for job in jobs}):
        os.environ["TORCHELASTIC_RESTART_COUNT"], deadline = str(restart), time.monotonic() + LIMIT_SECONDS
        left = {_start(rank, [job for job in jobs if job["restart"] == restart], out) for rank in range(world)}
        while left:
            ended, _ = os.waitpid(-1, os.WNOHANG)
            left.discard(ended)
            if time.monotonic() > deadline and left:
                hung = max(hung, len(left))
                for process in left:
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
    return hung


def _start(rank: int, jobs: list[dict[str, Any]], out: Path) -> int:
    process = os.fork()
    if process == 0:
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        try:
            work(jobs, out)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    return process


if __name__ == "__main__":
    sys.exit(main())
