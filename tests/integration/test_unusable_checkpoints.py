"""Every command that takes a run refuses one whose only checkpoint cannot be used, in one line."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas
from atlas import generate, niah
from atlas.checkpoint.manifest import encode, read_manifest
from tests.integration.sweep_commands import command


@pytest.fixture(scope="module")
def trained(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    atlas.train(atlas.compose([*small, "checkpoint.keep=2", "train.steps=2"]), folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000000")
    return folder


def nan_weights(state: dict[str, Any]) -> None:
    state["model"]["embedding.weight"][3, 1] = math.nan


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for name in path[:-1]:
            state = state[name]
        del state[path[-1]]

    return change


def rewrite(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The checkpoint with other content, and a manifest that matches it."""
    (folder,) = (run / "checkpoints").glob("step-*")
    state = torch.load(folder / "state.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "state.pt")
    data = (folder / "state.pt").read_bytes()
    forged = replace(read_manifest(folder), bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_bytes(encode(forged))


@pytest.fixture
def refusal(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Path], str]:
    """The one line with which a command refuses a run."""
    monkeypatch.setenv("ATLAS_RUN_DIR", str(tmp_path / "new"))

    def refuse(name: str, run: Path) -> str:
        if name == "load":
            with pytest.raises(atlas.ConfigError) as caught:
                atlas.load(run)
            return str(caught.value)
        if name in ("resume", "init_from"):
            ended = command(*([f"resume={run}"] if name == "resume" else [*small, f"init_from={run}"]))
            status, lines = ended.status, ended.err
        else:
            main = {"generate": lambda: generate.main([str(run), "prompt=a"]), "niah": lambda: niah.main([str(run)])}
            status, lines = main[name](), capsys.readouterr().err.splitlines()
        assert (status, len(lines)) == (2, 1)
        return lines[0].removeprefix("atlas: ")

    return refuse


COMMANDS = {"load": "path", "generate": "RUN", "niah": "RUN", "resume": "resume", "init_from": "init_from"}


@pytest.mark.parametrize(("name", "key"), COMMANDS.items())
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nan_weights, "state.pt: the weights embedding.weight are not finite"),
        (without("model"), "state.pt lacks the part model"),
    ],
    ids=["NaN", "no model"],
)
def test_nan_weights_and_a_missing_part_are_named(
    trained: Path, refusal: Any, tmp_path: Path, name: str, key: str, change: Any, reason: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    rewrite(run, change)
    said = refusal(name, run)
    place = run / "checkpoints"
    assert said == (
        f"{key}={place}: must hold a sound checkpoint ({place}: no usable checkpoint (step-00000002: {reason}))"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("rng"), r"must hold a sound checkpoint .*state\.pt lacks the part rng\)\)"),
        (without("position", "tokens"), r"must hold the weights of this model \(KeyError\('tokens'\)\)"),
        (without("rng", "python"), r"must hold the weights of this model \(KeyError\('python'\)\)"),
        (lambda state: state["position"].update(step="2"), r"must hold the weights of this model \(TypeError.*\)"),
        (lambda state: state.update(carried=7), r"must hold the weights of this model \(TypeError.*\)"),
    ],
)
def test_what_only_a_continuation_needs_is_named_as_well(
    trained: Path, refusal: Any, tmp_path: Path, change: Any, reason: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    rewrite(run, change)
    assert re.fullmatch(rf"resume=.*: {reason}", refusal("resume", run))
    model, _ = atlas.load(run)
    assert model.embedding.weight.isfinite().all()


@pytest.mark.slow
def test_a_run_with_the_batches_of_an_earlier_version_is_not_continued(
    trained: Path, refusal: Callable[[str, Path], str], small: list[str], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    rewrite(run, without("batches"))
    checkpoint = run / "checkpoints" / "step-00000002"
    assert refusal("resume", run) == (
        f"resume={checkpoint}: must be of a run with this version's batches; it has those of an earlier one, other rows"
        f" at every step (init_from={checkpoint} starts a new run from its weights)"
    )
    atlas.load(run)
    further = atlas.compose([*small, "train.steps=1", f"init_from={checkpoint}"])
    assert atlas.train(further, tmp_path / "further").status == "completed"
