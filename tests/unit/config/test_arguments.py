"""KEY=VALUE arguments: typed, and refused in one line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest

from atlas.config import ConfigError, MemoryConfig, ModelConfig, Rule
from atlas.config.arguments import names, read_device, read_settings, require_lasting_of, run_command, split_arguments


class Colour(StrEnum):
    red = "red"
    one = "1"


@dataclass
class Settings:
    text: str = ""
    count: int = 3
    share: float = 0.5
    colour: Colour = Colour.red
    loud: bool = True


def test_values_get_the_type_of_their_field() -> None:
    found = read_settings(Settings, ["text=a=b: {c}, ${d}", "count=7", "share=1", "colour=1", "count=8", "loud=False"])
    assert found == Settings("a=b: {c}, ${d}", 8, 1.0, Colour.one, loud=False)
    assert read_settings(Settings, []) == Settings()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("count=many", "count=many: must be an integer, such as 3"),
        ("count=1.5", "count=1.5: must be an integer, such as 3"),
        ("share=", "share=: must be a number, such as 0.5"),
        ("loud=0", "loud=0: must be true or false"),
        ("colour=blue", "colour=blue: must be one of red, 1"),
        ("cuont=1", "cuont=1: must be one of the keys text, count, share, colour, loud; did you mean count?"),
        ("xyz=1", "xyz=1: must be one of the keys text, count, share, colour, loud"),
    ],
)
def test_a_bad_argument_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_settings(Settings, [argument])
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a, b", ["a", "b"]),
        ("[a,b]", ["a", "b"]),
        ("[ab]*.md", ["[ab]*.md"]),
        ("[ab]*.md,n[12]", ["[ab]*.md", "n[12]"]),
        ("[n[12].md,b]", ["n[12].md", "b"]),
        ("[]", []),
        ("", []),
    ],
)
def test_brackets_of_a_pattern_are_not_those_of_a_list(text: str, found: list[str]) -> None:
    assert names(text) == found


def test_the_one_folder_is_told_from_the_settings() -> None:
    assert split_arguments(["a=1", "runs/x", "b="], "usage") == ("runs/x", ["a=1", "b="])
    for wrong in ([], ["a=1"], ["x", "y"]):
        with pytest.raises(ConfigError, match=r"^RUN=.*: must be one run or checkpoint folder: usage$"):
            split_arguments(wrong, "usage")


def test_latest_is_the_newest_run_of_the_folder_of_runs_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^RUN=latest: must be a folder, while there is no run in outputs/runs$"):
        split_arguments(["latest"], "usage")
    for name in ("20260101-000000", "20260301-000000", "20260401-000000"):
        Path("outputs/runs", name).mkdir(parents=True)
    for name in ("20260101-000000", "20260301-000000"):  # the newest one was refused before it began
        Path("outputs/runs", name, "config.yaml").touch()
    assert split_arguments(["latest", "a=1"], "usage") == ("outputs/runs/20260301-000000", ["a=1"])
    assert capsys.readouterr().err == "atlas: latest is outputs/runs/20260301-000000\n"
    named = Path("outputs/runs/first/config.yaml")
    named.parent.mkdir()
    named.touch()
    os.utime(named, ns=(0, 0))
    assert split_arguments(["latest"], "usage") == ("outputs/runs/20260301-000000", [])
    os.utime(named)
    assert split_arguments(["latest"], "usage") == ("outputs/runs/first", [])
    Path("latest").mkdir()
    assert split_arguments(["latest"], "usage") == ("latest", [])


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (MemoryConfig(enabled=False), "lasting=0.5: must be 0: the model has no global memory"),
        (MemoryConfig(use_global=False), "lasting=0.5: must be 0: the model has no global memory"),
        (
            MemoryConfig(rule=Rule.muon),
            "lasting=0.5: must be 0: with the rule muon every chunk makes a step, however small",
        ),
        (MemoryConfig(rate_max=0.3), "lasting=0.5: must be < 0.3, its model.memory.rate_max: no write would last"),
    ],
)
def test_lasting_is_refused_where_no_write_would_last(memory: MemoryConfig, message: str) -> None:
    model = ModelConfig(memory=memory)
    require_lasting_of(model, 0.0)
    with pytest.raises(ConfigError) as error:
        require_lasting_of(model, 0.5)
    assert str(error.value) == message
    require_lasting_of(ModelConfig(), 0.5)


@pytest.mark.parametrize("setting", ["processes=2", "precision=bf16", "compile=true"])
def test_what_only_training_heeds_is_refused_for_a_trained_model(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"^device.{setting}: must be left out: "):
        read_device([f"device.{setting}"])


def test_ctrl_c_ends_a_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    assert run_command(work, [], "help") == 130
    assert capsys.readouterr().err == "\natlas: stopped by Ctrl-C\n"
