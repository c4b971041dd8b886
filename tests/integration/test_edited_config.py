"""config.yaml of a finished run, edited by hand: whoever reads the run is told, and it is not continued."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import atlas
from atlas import generate
from atlas.checkpoint.manifest import encode, read_manifest
from atlas.config.continuing import settings_hash
from atlas.config.files import read_yaml
from atlas.report.__main__ import main as report
from atlas.runs.summary import RunSummary
from tests.integration.conftest import Left
from tests.integration.sweep_commands import command


@pytest.fixture
def edited(undisturbed: RunSummary, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(undisturbed.folder, tmp_path / "edited"))
    text = (folder / "config.yaml").read_text()
    assert "\n  window: 8\n" in text
    (folder / "config.yaml").write_text(text.replace("\n  window: 8\n", "\n  window: 4\n"))
    return folder


def line(run: RunSummary, folder: Path) -> str:
    return (
        f"{folder / 'config.yaml'} is not the one that step 30 was saved with (hash {run.config_hash}): it was edited"
        " since, so the model may differ from the trained one"
    )


def test_who_reads_the_run_is_told(edited: Path, undisturbed: RunSummary, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="edited since") as told:
        _, config = atlas.load(edited)
    assert ([str(one.message) for one in told], config.model.window) == ([line(undisturbed, edited)], 4)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert generate.main([str(edited), "prompt=a", "tokens=1"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"atlas: {line(undisturbed, edited)}"]
    assert report([str(edited)]) == 0
    assert (edited / "report" / "report.md").read_text().count("is not the one that step 30 was saved with") == 1


def test_the_run_is_not_continued_and_the_cause_is_named_once(edited: Path, undisturbed: RunSummary) -> None:
    ended = command(f"resume={edited}", "train.steps=40")
    place = edited / "checkpoints"
    names = ", ".join(sorted((path.name for path in place.glob("step-*")), reverse=True))
    assert (ended.status, ended.err) == (
        2,
        [
            f"atlas: resume={place}: must hold a sound checkpoint ({place}: no usable checkpoint ({names}: config.yaml"
            f" was edited since, or it is of another run (config hash {undisturbed.config_hash})))"
        ],
    )


@pytest.mark.slow
def test_a_run_that_is_older_than_a_setting_is_continued(
    undisturbed: RunSummary, tmp_path: Path, left: Callable[[Path], Left]
) -> None:
    folder = Path(shutil.copytree(undisturbed.folder, tmp_path / "older"))
    config = folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("  patience: 0\n", ""))
    assert config.read_text() != text
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        older = replace(read_manifest(checkpoint), config_hash=settings_hash(read_yaml(config)))
        (checkpoint / "manifest.json").write_bytes(encode(older))
    atlas.load(folder)  # a warning is an error here
    assert command(f"resume={folder}", "train.steps=32").status == 0
    assert left(folder).events("notice")[-1]["message"] == "resumed from step-00000030"


@pytest.mark.slow
def test_a_run_that_changed_its_settings_itself_is_read_without_a_word(undisturbed: RunSummary, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed.folder, tmp_path / "longer"))
    assert command(f"resume={folder}", "train.steps=40", "optim.lr=1e-4").status == 0
    for checkpoint in (folder / "checkpoints").glob("step-*"):  # of both settings; a warning is an error here
        assert atlas.load(checkpoint)[1].train.steps == 40
    report([str(folder)])
    assert "is not the one that" not in (folder / "report" / "report.md").read_text()
