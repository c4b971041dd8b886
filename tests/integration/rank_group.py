"""Starts the processes of a run as torchrun does, for tests: forked after the imports, which take longer than the runs.

python -m tests.integration.rank_group WORLD JOBS OUT

JOBS: a JSON file with a list of jobs, which every rank does one after the other. A job is {"name", "do", "overrides",
"folder"}, with "rank" and "also" for further overrides of one rank. How it ended on a rank is in OUT/NAME.rank<r>. Jobs
with "restart": 1 are done by new processes, which torchrun's store tells apart from the ones before by that number.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import atlas
from atlas.config import ConfigError
from atlas.data.batch import Batch
from atlas.data.text import TextData
from atlas.parallel.agreement import require_same_weights
from atlas.parallel.launch import launched
from atlas.runs.build import build_data, build_model, build_optimizer
from atlas.train import main as main_of_train
from atlas.training.state import TrainState
from atlas.training.step import TrainStep
from atlas.training.watch.gate_monitor import GateMonitor
from atlas.training.watch.history import History

LIMIT_SECONDS = 60.0  # for all jobs together; then ranks that hang are killed


class Troubled(TextData):
    """Text, and a trouble when a rank asks for the batch of a step: `trouble` is WHAT@STEP on rank `on`, once.

    WHAT: a signal's name; sleep; full (nothing larger than 20 kB can be written), room (it can again).
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
                os.kill(os.getpid(), signal.Signals[name])
        return super().batch(step, rows)


def train(job: dict[str, Any], overrides: list[str]) -> str:
    return atlas.train(atlas.compose(overrides), job["folder"]).status


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
        return f"status {main_of_train()}"
    except SystemExit as error:
        return f"status {error.code}"


def gradients(job: dict[str, Any], overrides: list[str]) -> str:
    """Two training steps; the gradients of the second are written into the folder. Returns their loss and norm."""
    config = atlas.compose(overrides)
    with launched() as ranks:
        model = build_model(config)
        optimizer = build_optimizer(config, model)
        monitor, history = GateMonitor(config.train.gate), History(config.rollback)
        state = TrainState(model, optimizer, monitor, history, ranks=ranks)
        step, data = TrainStep(config.train, torch.device("cpu"), torch.float32, ranks), build_data(config)
        for number in (1, 2):
            result = step(state, data.batch(number, step.rows))
        require_same_weights(ranks, model, "after step 2")
        if ranks.first:
            found = {name: parameter.grad for name, parameter in model.named_parameters()}
            torch.save({"loss": result.loss, "norm": result.gradient_norm, "gradients": found}, job["folder"])
    return "done"


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
    deadline, hung = time.monotonic() + LIMIT_SECONDS, 0
    for restart in sorted({job["restart"] for job in jobs}):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restart)
        left = {_start(rank, [job for job in jobs if job["restart"] == restart], out) for rank in range(world)}
        while left:
            ended, _ = os.waitpid(-1, os.WNOHANG)
            left.discard(ended)
            if time.monotonic() > deadline and not hung:
                hung = len(left)
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
