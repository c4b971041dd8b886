"""What is counted without a GPU, and the half hour as a rehearsal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch

import atlas
from atlas.config import ConfigError
from atlas.config.arguments import read_settings
from experiments.gpu import decode, launches, machine, products, registers, scan, step_graph
from experiments.gpu.half_hour import PARTS, main
from experiments.gpu.launch_table import DOCUMENT, KERNELS, row
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
        main([f"folder={tmp_path}", "rehearse=true"])


@pytest.mark.slow
def test_every_command_of_the_half_hour_can_be_read(tmp_path: Path) -> None:
    """On a machine with a GPU no minute goes to a typing error."""

    def interpreted(given: list[str]) -> object:
        with patch.dict("os.environ", TRITON_INTERPRET="1"):
            return read_settings(products.Options, [*given, "device=cpu"])

    read: dict[str, Callable[[list[str]], object]] = {
        "experiments.gpu.machine": lambda given: read_settings(machine.Options, given),
        "experiments.gpu.registers": lambda given: read_settings(registers.Options, given),
        "experiments.gpu.profile": atlas.compose,
        "experiments.gpu.products": interpreted,
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


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (registers, ["widths=48"], "widths=48: must be a list of 16, 32, 64, 128"),
        (registers, ["chunks=0"], "chunks=0: must be a list of integers >= 1, such as 16,64"),
        (registers, ["chunks="], "chunks=: must be a list of integers >= 1, such as 16,64"),
        (registers, ["warps=3", "kernels=products"], "warps=3: must be 0 or one of 1, 2, 4, 8, 16, 32"),
        (registers, ["capability=75"], "capability=75: must be a list of 80, 89, 90"),
        (scan, ["device=cpu"], "device=cpu: must be cuda, or TRITON_INTERPRET=1 must be set for triton's interpreter"),
        (products, ["device=cpu"], "device=cpu: must be cuda, or TRITON_INTERPRET=1 must be set for triton's"),
        (decode, ["device=cpu", "contexts=many"], "contexts=many: must be a list of integers >= 1, such as 16,64"),
        (decode, ["device=cpu", "tokens=0"], "tokens=0: must be >= 1"),
        (step_graph, ["steps=0"], "steps=0: must be a list of integers >= 1"),
        (step_graph, ["steps=3,4"], "steps=3,4: must be one integer >= 1"),
        (launches, ["device.compile=true"], "device.compile=True: must be false: what torch.compile launches is not"),
        (launches, ["device.kernels=compiled"], "device.kernels=compiled: must be auto, triton or torch: the step is"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_refused_before_any_work(
    module: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        module.main(arguments)
    assert str(refused.value).startswith(message)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("key", ["rows", "chunks", "warps", "tokens", "repeats", "width"])
def test_the_scan_takes_no_zero(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ConfigError, match=f"^{key}=0: must be "):
        scan.main(["device=cpu", f"{key}=0"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_the_half_hour_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        main([f"folder={tmp_path / 'new'}"])
    assert str(refused.value) == "rehearse=false: must be true here: no GPU was found"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_document_has_the_launches_of_today(kernels: str) -> None:
    assert row("tiny", kernels) in DOCUMENT.read_text(encoding="utf-8")
