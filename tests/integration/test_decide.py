"""Both decisions from the sweep to the document, with a model of a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.phase2.chunk_runs import SETS
from experiments.phase2.decide import main
from tests.integration.small_runs import MODEL

SMALL = [
    *MODEL,
    "model.native.sequence=128",
    "model.native.needle_distance=32",
    "data.recall.pairs=4",
    "data.recall.queries=4",
    "data.recall.sparse_queries=4",
    "device=cpu",
    "device.threads=1",
]


def measure(experiment: str, folder: Path, text: Path, *overrides: str) -> None:
    settings = [*SMALL, f"data.paths=[{text}]", *overrides, "hydra.sweep.dir=sweep"]
    subprocess.run(
        [sys.executable, "-m", "atlas.train", f"experiment={experiment}", *settings],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def chunk_sweep(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    folder = tmp_path_factory.mktemp("chunk_sizes")
    measure("chunk_size_lock", folder, text, "train={sequence:128,batch_size:2,steps:50}")
    return folder / "sweep"


@pytest.fixture(scope="module")
def probe_sweep(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    folder = tmp_path_factory.mktemp("probe_frequency")
    measure("niah_frequency", folder, text, "sweep.round=0,1", "train.steps=40")
    return folder / "sweep"


def decision(sweep: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((sweep / "decision.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_the_chunk_sizes_are_decided_from_the_sweep_alone(chunk_sweep: Path) -> None:
    status = main([str(chunk_sweep)])
    found = decision(chunk_sweep)
    assert found["protocol"] == "chunk_sizes"
    assert status == (not found["passed"])
    runs = [run for run in found["evidence"] if run["kind"] == "ChunkRun"]
    assert [(run["round"], run["context"], run["candidate"]) for run in runs] == [
        (number, 128, name) for number in (0, 1) for name in ("baseline", *SETS)
    ]
    assert [len(run["speeds"]) for run in runs] == 8 * [50]
    assert all(run["fits"] for run in runs)


@pytest.mark.slow
def test_a_set_that_is_not_fast_enough_is_investigated_once(chunk_sweep: Path) -> None:
    """Shards of this model are folded exactly; what the clock says depends on the machine."""
    kept = chunk_sweep / "investigation.json"
    if not kept.exists():
        main([str(chunk_sweep)])
    quiet = json.loads(kept.read_text())
    quiet["machine"]["others"] = 0.0  # beside other work it would be measured anew
    kept.write_text(json.dumps(quiet))
    main([str(chunk_sweep)])
    first = decision(chunk_sweep)
    found = [one for one in first["evidence"] if one["kind"] == "SetInvestigation"]
    assert first["outcome"] != "DECIDED"  # four memories of this size are no faster than one
    assert [one["candidate"] for one in found] == list(SETS)
    assert all(one["products"][0] == one["products"][1] for one in found)
    assert all(max(one["output_difference"], one["gradient_difference"]) < 1e-12 for one in found)
    assert json.loads(kept.read_text()) == quiet
    assert [{key: value for key, value in one.items() if key != "kind"} for one in found] == quiet["sets"]


@pytest.mark.slow
def test_the_probe_frequency_is_locked_from_the_sweep_alone(probe_sweep: Path) -> None:
    status = main([str(probe_sweep)])
    found = decision(probe_sweep)
    assert (found["protocol"], found["outcome"]) == ("probe_frequency", "LOCKED")
    assert status == (not found["passed"])
    assert [(run["every"], run["probes"]) for run in found["evidence"]] == [(20, 2), (None, 0)] * 2
    assert all((run["probe_seconds"] > 0) == (run["every"] is not None) for run in found["evidence"])


@pytest.mark.slow
def test_both_make_the_document(chunk_sweep: Path, probe_sweep: Path, tmp_path: Path) -> None:
    path = tmp_path / "DECISIONS.md"
    main([str(probe_sweep), f"document={path}"])
    main([str(chunk_sweep), f"document={path}"])
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("## ")]
    assert lines == [
        f"## {title}: {found['outcome']} ({found['headline']})"
        for title, found in (
            ("Chunk sizes (P2-T1)", decision(chunk_sweep)),
            ("NIAH probe frequency (P2-T2)", decision(probe_sweep)),
        )
    ] + ["## Rollback threshold: not measured"]
    opening = ("Of the sets of chunk sizes use Set ", "No set of chunk sizes is locked: ")  # what the clock says
    assert text.splitlines()[2].startswith(opening)
    copied = tmp_path / "data" / "chunk_sizes.json"
    assert copied.read_bytes() == (chunk_sweep / "decision.json").read_bytes()


def test_bad_arguments_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "atlas: SWEEP=: must be at least one folder of a sweep: python -m experiments.phase2.decide SWEEP ..."),
        ([str(tmp_path)], f"atlas: SWEEP={tmp_path}: must be the folder of a sweep (sweep.json is not in it)"),
        ([str(tmp_path), "protocl=x"], "atlas: protocl=x: must be one of the keys protocol, document"),
        ([str(tmp_path), "document=nowhere/x.md"], "atlas: document=nowhere/x.md: must be a file in a folder that"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1)
        assert printed.err.startswith(message)


def test_help_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith(
        "python -m experiments.phase2.decide SWEEP ... [protocol=NAME] [document=FILE]\n"
    )
