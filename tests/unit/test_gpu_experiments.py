"""What is counted without a GPU, and the half hour as a rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import atlas
from atlas.config import ConfigError
from atlas.config.arguments import read_settings
from experiments.gpu import decode, machine, products, registers
from experiments.gpu.half_hour import PARTS, main
from experiments.gpu.launches import count
from experiments.gpu.stand_in import DEVICE, DeviceTensor, counting
from experiments.speed.entries import check_entries
from experiments.speed.options import parse

MODEL = [
    "model.width=32", "model.heads=2", "model.memory.hidden=16", "model.feedforward=32", "model.layers=1",
    "train.batch_size=2", "train.sequence=64", "chunk_size.shard=64", "chunk_size.global_size=64", "niah=off",
    "logger=none",
    "data=recall", "data.recall.pairs=2", "data.recall.queries=2", "data.recall.distance_min=8",
    "data.recall.sparse_pairs=1", "data.recall.sparse_queries=1",
]  # fmt: skip


def test_the_stand_in_counts_launches_waits_and_copies() -> None:
    with counting() as counts:
        x = torch.ones(4, 3).to(DEVICE)  # one copy that waits
        assert isinstance(x, DeviceTensor)
        assert (x.device, x.is_cuda, x.is_cpu) == (DEVICE, True, False)
        y = (x.view(3, 4) @ x).relu()  # a view launches nothing
        pinned = torch.ones(3).pin_memory().to(DEVICE, non_blocking=True)
        (y + pinned).sum().item()
    assert counts.launches == {"mm": 1, "relu": 1, "add": 1, "sum": 1}
    assert (counts.waits, counts.copies) == ({"_local_scalar_dense": 1}, 1)


def test_a_step_waits_once_and_copies_nothing_that_it_waits_for() -> None:
    counts = count(atlas.compose(MODEL)).whole
    assert (dict(counts.waits), counts.copies) == ({"tolist": 1}, 0)
    assert counts.launches["scan_forward"] == counts.launches["scan_backward"] == 2  # local and global memory
    assert counts.launches["triton_products"] == counts.launches["triton_products_backward"] == 1
    plain = count(atlas.compose([*MODEL, "device.kernels=torch"])).whole
    assert plain.launches["scan_forward"] == 0
    assert counts.total < 0.75 * plain.total


@pytest.mark.slow
def test_launches_do_not_depend_on_the_batch() -> None:
    totals = [count(atlas.compose([*MODEL, f"train.batch_size={rows}"])).whole.total for rows in (2, 4)]
    assert abs(totals[0] - totals[1]) <= 8  # rows of a kind are picked one by one


def test_the_half_hour_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        main([f"folder={tmp_path / 'new'}", "parts=speed,luck"])
    assert str(error.value) == f"parts=luck: must be among {', '.join(PARTS)}"
    with pytest.raises(ConfigError, match="must be the name of a new folder"):
        main([f"folder={tmp_path}"])


@pytest.mark.slow
def test_every_command_of_the_half_hour_can_be_read(tmp_path: Path) -> None:
    """On a machine with a GPU no minute goes to a typing error."""
    read: dict[str, Callable[[list[str]], object]] = {
        "experiments.gpu.machine": lambda given: read_settings(machine.Options, given),
        "experiments.gpu.registers": lambda given: read_settings(registers.Options, given),
        "experiments.gpu.profile": atlas.compose,
        "experiments.gpu.products": lambda given: read_settings(products.Options, [*given, "device=cpu"]),
        "experiments.gpu.decode": lambda given: read_settings(decode.Options, [*given, "device=cpu"]),
        "experiments.gpu.step_graph": atlas.compose,
        "experiments.speed": lambda given: check_entries(parse(given)),
        "atlas.train": lambda given: atlas.compose([one for one in given if not one.startswith("hydra.")]),
    }
    seen = set()
    for part in PARTS.values():
        for command in part.commands:
            module, *given = command.format(own=tmp_path).split()
            if module in read:
                read[module](given)
                seen.add(module)
    assert seen == read.keys()


@pytest.mark.slow
def test_a_part_of_the_half_hour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part that fails does not stop the next."""
    status = main([f"folder={tmp_path / 'new'}", "parts=tests,machine", "rehearse=true"])
    said = capsys.readouterr().out
    assert "machine: done in " in said
    assert "TFLOP/s" in (tmp_path / "new" / "2-machine.txt").read_text()
    assert status == int("tests: exit status" in said)  # without triton its tests are skipped, which is no success
