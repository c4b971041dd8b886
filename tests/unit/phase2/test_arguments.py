"""The gate's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import atlas
from atlas.config import ConfigError
from experiments.phase2.arguments import parse_arguments

ALL = ("G2-1", "G2-2", "G2-3", "G2-4", "G2-5", "G2-6", "G2-7")


def test_own_keys_are_told_from_overrides(tmp_path: Path) -> None:
    found = parse_arguments(
        ["train.steps=20", "only=g2-6,G2-3", f"folder={tmp_path / 'new'}", f"evidence.chunk_sizes={tmp_path}", "seed=3"]
    )
    assert found.overrides == ("train.steps=20", "seed=3")
    assert found.config == atlas.compose(["train.steps=20", "seed=3"])
    assert found.only == ("G2-3", "G2-6")
    assert found.folder == tmp_path / "new"
    assert found.sweeps == {"chunk_sizes": tmp_path}


def test_without_arguments_it_is_the_default_configuration_and_every_check() -> None:
    found = parse_arguments([])
    assert (found.config, found.overrides, found.only, found.folder) == (atlas.compose(), (), ALL, None)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("only=G2-8", f"only=G2-8: must be some of {','.join(ALL)}"),
        ("only=", f"only=: must be some of {','.join(ALL)}"),
        ("onyl=G2-3", "onyl=G2-3: must be a key that exists (--help lists them); did you mean only?"),
        (
            "evidence.chunk_size=x",
            "evidence.chunk_size=x: must be a key that exists (--help lists them); did you mean evidence.chunk_sizes?",
        ),
        ("folder=", "folder=: must be a new or empty folder: evidence of two gates does not mix"),
        ("evidence.chunk_sizes=nowhere", "evidence.chunk_sizes=nowhere: must be the folder of a finished sweep"),
        ("evidence.probe_frequency=", "evidence.probe_frequency=: must be the folder of a finished sweep"),
        ("resume=auto", "resume=auto: must be left out: the gate sets it itself"),
        ("+experiment=example", "+experiment=example: must be left out: the gate sets it itself"),
        ("hydra.run.dir=x", "hydra.run.dir=x: must be left out: the gate sets it itself"),
        (
            "train.stpes=3",
            "train.stpes=3: must be a key that exists (--cfg job lists them); did you mean train.steps?",
        ),
        ("train.steps=0", "train.steps=0: must be >= 1"),
        ("-m", "-m: must be written KEY=VALUE or GROUP=OPTION (quote special characters)"),
    ],
)
def test_what_cannot_be_used_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_arguments([argument])
    assert str(error.value) == message


def test_a_folder_that_is_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gate.json").touch()
    with pytest.raises(ConfigError, match="must be a new or empty folder"):
        parse_arguments([f"folder={tmp_path}"])
